// A classic script in the head: the chosen theme stands before the first pixel does.
try {
  document.documentElement.dataset.theme = localStorage.getItem("finelab.theme") ?? "";
} catch {
  // The browser forbids storage: the system's theme it is.
}
