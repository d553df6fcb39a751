"""The database: SQLite, with a session for each app context, be it a request's or a message's."""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path
from typing import Literal
from uuid import UUID

from flask import Flask, current_app, g
from sqlalchemy import URL, Engine, create_engine, update
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

State = Literal["unsent", "queued", "done"]
#: An order goes from one to the next, or skips one, and never back.
STATES: tuple[State, ...] = ("unsent", "queued", "done")


class Base(DeclarativeBase):
    pass


class Order(Base):
    __tablename__ = "orders"

    id: Mapped[UUID] = mapped_column(primary_key=True)
    customer: Mapped[str]
    tea: Mapped[str]
    cups: Mapped[int]
    state: Mapped[State] = mapped_column(default="unsent")
    placed_at: Mapped[datetime] = mapped_column(default=lambda: datetime.now(timezone.utc), index=True)


def init_app(app: Flask) -> None:
    url = URL.create("sqlite", database=str(app.config["ORDERS_DATABASE"]))
    # Web server and worker write to the same file, one at a time: who finds it locked waits, up to 10 s.
    app.extensions["orders"] = create_engine(url, connect_args={"timeout": 10})
    app.teardown_appcontext(_close_session)


def create() -> None:
    """Make file and tables, where there are none."""
    Path(current_app.config["ORDERS_DATABASE"]).parent.mkdir(parents=True, exist_ok=True)
    with _engine().connect() as connection:
        # With a write-ahead log, who reads and who writes do not wait for each other. The file remembers it.
        connection.exec_driver_sql("PRAGMA journal_mode=WAL")
    Base.metadata.create_all(_engine())


def session() -> Session:
    """The app context's session. What is not committed when the context ends is rolled back."""
    if "session" not in g:
        # Orders can be read after a commit without another look at the database.
        g.session = Session(_engine(), expire_on_commit=False)
    found: Session = g.session
    return found


def advance(order_id: UUID, to: State) -> bool:
    """Move an order on, unless it is there or further; whether it was moved. The caller commits.

    The look at the state and its change are one statement: of two that do this at the same time, the second
    waits for the first one's commit, and moves nothing.
    """
    earlier = STATES[: STATES.index(to)]
    move = update(Order).where(Order.id == order_id, Order.state.in_(earlier)).values(state=to)
    return session().scalar(move.returning(Order.id)) is not None


def _engine() -> Engine:
    engine: Engine = current_app.extensions["orders"]
    return engine


def _close_session(_error: BaseException | None) -> None:
    if "session" in g:
        g.pop("session").close()
