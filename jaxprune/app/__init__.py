"""A page in the browser: a sound, its labels, and the patches that are kept, at any keep rate and by several methods.

`compare` runs the model, `fragment` writes the answer as HTML, `server` answers a browser. The page itself is
`page.html`, `page.js` and `page.css`. It is Python's own server, and the page asks for nothing from a network: no
package is needed, and it works offline. Panels and markup are `jaxprune.report`'s. The command is `jaxprune app`.
"""

__all__ = ["compare", "fragment", "server"]
