// Fetches the page again when the server says that something has changed, and takes over the parts that may change.
// Without this script the page is the same, and is read again by hand.
"use strict";
const main = document.getElementById("main");
const events = new EventSource(main.dataset.stream);
let waiting = false;

async function refresh() {
  waiting = false;
  const answer = await fetch(location.href, { headers: { Accept: "text/html" } });
  if (!answer.ok) return;
  const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
  for (const part of main.querySelectorAll("[data-live]")) {
    const other = fresh.getElementById(part.id);
    // a part that holds the keyboard's focus keeps it: it is replaced when the focus is elsewhere
    if (other && other.innerHTML !== part.innerHTML && !part.contains(document.activeElement)) {
      part.innerHTML = other.innerHTML;
    }
  }
}

events.addEventListener("changed", () => {
  if (!waiting) {
    waiting = true;
    setTimeout(refresh, 300);
  }
});
