/** Random ids. `crypto.randomUUID` exists on https and localhost only, and the panel works on plain http too. */

/** Random bytes in hexadecimal. @param {number} bytes */
export const hex = bytes =>
  Array.from(crypto.getRandomValues(new Uint8Array(bytes)), byte => byte.toString(16).padStart(2, '0')).join('');
