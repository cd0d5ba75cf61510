"use strict";
const cards = [...document.querySelectorAll(".card")];
const none = "(none of them)";

function truthOf(card) {
  const select = card.querySelector("select");
  const chosen = [...select.selectedOptions].map((option) => option.value).filter((value) => value !== "");
  if (!select.multiple) return chosen[0] || "";
  if (!chosen.length) return "";
  return JSON.stringify(chosen.filter((value) => value !== none));
}

function quoted(text) {
  return `"${String(text).replaceAll('"', '""')}"`;
}

function count() {
  const answered = cards.filter((card) => truthOf(card) !== "").length;
  document.getElementById("count").textContent = `${answered} of ${cards.length} answered`;
}

document.getElementById("save").addEventListener("click", () => {
  const lines = cards.map((card) => {
    const data = card.dataset;
    return [data.row, quoted(data.uri), quoted(data.stratum), data.weight, quoted(truthOf(card))].join(",");
  });
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([["row_id,uri,stratum,weight,truth", ...lines, ""].join("\n")], { type: "text/csv" }));
  link.download = "queue.csv";
  link.click();
});
document.addEventListener("change", count);
count();
