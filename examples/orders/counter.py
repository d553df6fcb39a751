"""What the browser sees: the counter, with a form and the latest orders."""

from __future__ import annotations

from collections.abc import Mapping
from uuid import UUID, uuid4

from flask import Blueprint, abort, redirect, render_template, request, url_for
from flask.typing import ResponseReturnValue
from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from werkzeug.datastructures import MultiDict

from .database import Order, session
from .messages import send

counter = Blueprint("counter", __name__)

TEAS = ("Assam", "Darjeeling", "Earl Grey", "Sencha")
LONGEST_NAME = 40
MOST_CUPS = 12


@counter.get("/")
def show() -> str:
    return _page({"id": uuid4().hex, "cups": "1"}, {})


@counter.post("/orders")
def place() -> ResponseReturnValue:
    order, errors = _read(request.form)
    if errors:
        return _page(request.form, errors), 422
    session().add(order)
    try:
        session().commit()
    except IntegrityError:  # the same form came before: a double click, or a reload
        session().rollback()
        order = session().get_one(Order, order.id)
    return _send(order)


@counter.post("/orders/<uuid:order_id>/send")
def send_again(order_id: UUID) -> ResponseReturnValue:
    order = session().get(Order, order_id)
    return abort(404) if order is None else _send(order)


@counter.get("/states")
def states() -> dict[str, str]:
    """The states of the orders that are named, by their ids, for the script in the page."""
    ids = request.args.getlist("id", type=UUID)
    found = session().execute(select(Order.id, Order.state).where(Order.id.in_(ids)))
    return {str(order_id): state for order_id, state in found}


def _send(order: Order) -> ResponseReturnValue:
    if order.state == "unsent":
        send(order)
    # 303: what the browser reloads from now on is the page, and not the form.
    return redirect(url_for(".show", _anchor=f"order-{order.id}"), 303)


def _read(form: MultiDict[str, str]) -> tuple[Order, dict[str, str]]:
    """An order of what was filled in; and what is wrong with it, by field."""
    # Made with the form, so that the same form sent twice is one order.
    order_id = form.get("id", type=UUID) or abort(400)
    customer = " ".join(form.get("customer", "").split())
    tea = form.get("tea", "")
    cups = form.get("cups", 0, type=int)
    errors = {}
    if not 0 < len(customer) <= LONGEST_NAME:
        errors["customer"] = f"Please give a name, of up to {LONGEST_NAME} letters."
    if tea not in TEAS:
        errors["tea"] = "Please choose one of these teas."
    if not 0 < cups <= MOST_CUPS:
        errors["cups"] = f"Please order 1 to {MOST_CUPS} cups."
    return Order(id=order_id, customer=customer, tea=tea, cups=cups), errors


def _page(form: Mapping[str, str], errors: Mapping[str, str]) -> str:
    orders = session().scalars(select(Order).order_by(Order.placed_at.desc()).limit(20))
    return render_template(
        "counter.html",
        form=form,
        errors=errors,
        orders=orders.all(),
        teas=TEAS,
        longest_name=LONGEST_NAME,
        most_cups=MOST_CUPS,
    )
