// The ways a photo gets into the page: chosen, dropped or pasted.

const $ = (id) => document.getElementById(id);

/** onFile(file): called with each; also with none, when what was dropped or pasted is no file. */
export function listenForPhotos(onFile) {
  const stage = $("drop");
  $("choose").addEventListener("click", () => $("file").click());
  $("file").addEventListener("change", () => {
    onFile($("file").files[0]);
    $("file").value = ""; // the same file may be chosen again
  });
  for (const name of ["dragenter", "dragover"]) {
    document.addEventListener(name, (event) => {
      event.preventDefault();
      stage.classList.add("over");
    });
  }
  document.addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) stage.classList.remove("over");
  });
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    stage.classList.remove("over");
    onFile(event.dataTransfer.files[0]);
  });
  document.addEventListener("paste", (event) => onFile(event.clipboardData.files[0]));
}
