// Asks for the states of orders that are not done, once a second, and shows what has changed.
const orders = document.querySelector("#orders");
const news = document.querySelector("#news");
const open = () => [...(orders?.querySelectorAll("li:not([data-state=done])") ?? [])];

async function look() {
  const ids = new URLSearchParams(open().map((order) => ["id", order.dataset.id]));
  try {
    const answer = await fetch(`${orders.dataset.states}?${ids}`, { cache: "no-store" });
    if (answer.ok) show(await answer.json());
  } catch {
    // The server cannot be reached; the next look may find it.
  }
  lookLater();
}

function show(states) {
  for (const order of open()) {
    const state = states[order.dataset.id];
    if (!state || state === order.dataset.state) continue;
    order.dataset.state = state;
    order.querySelector(".state").textContent = state;
    // Read out by screen readers, which would miss the change otherwise.
    if (state === "done") news.textContent = `Done: ${order.querySelector(".what").textContent} ${order.querySelector(".customer").textContent}`;
  }
}

function lookLater() {
  if (open().length) setTimeout(look, 1000);
}

lookLater();
