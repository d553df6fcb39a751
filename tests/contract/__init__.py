"""What RabbitMQ does, stated once: each test runs against a real node and against the embedded broker."""

import pytest

pytest.register_assert_rewrite("tests.contract.helpers", "tests.contract.raw")
