/** What every part of the page needs of it. */

export const $ = (id) => document.getElementById(id);

/** The line that a screen reader reads out. */
export const say = (text) => ($("status").textContent = text);
