"""Many more training phrases, made by setting each kind's words into common frames.

People name an edit by a quality ("make it gloomier"), a thing to add ("give it a sepia tone"), a thing to become
("turn it into a negative") or a level to move ("dial the contrast down"). The hand-written phrases of `cores` say
what is idiomatic; these say what else is possible, so that a small model learns the words and not the sentences.
"""

from __future__ import annotations

from collections.abc import Iterator

FRAMES = {
    "adjective": (
        "make {n} {x}", "~{x}", "~much {x}", "let {n} become {x}", "get {n} {x}", "make everything {x}",
        "have {n} look {x}", "make {n} look {x}", "~{x} look", "turn {n} {x}", "make {n} appear {x}", "~i want it {x}",
        "~should be {x}", "keep {n} the same but {x}", "make the whole thing {x}", "~a {x} one", "make {n} really {x}",
        "~could be {x}",
    ),
    "thing": (
        "add {x}", "add {x} to {n}", "give {n} {x}", "apply {x}", "apply {x} to {n}", "put {x} on {n}", "~{x}",
        "~with {x}", "use {x}", "~i want {x}", "bring {x} into {n}", "~needs {x}", "~how about {x}", "create {x}",
        "put {x} over {n}", "~{x} would be great", "let {n} have {x}", "throw {x} on {n}", "~something with {x}",
    ),
    "result": (
        "turn {n} into {x}", "convert {n} to {x}", "change {n} into {x}", "transform {n} into {x}", "render {n} as {x}",
        "make {x} of {n}", "~{x}", "show {n} as {x}", "redo {n} as {x}", "~as {x}", "make {n} look like {x}",
        "~i want {x}", "make {n} resemble {x}", "~should look like {x}", "process {n} into {x}", "show me {x}",
    ),
    "raise": (
        "increase the {x}", "raise the {x}", "boost the {x}", "lift the {x}", "crank the {x} up", "dial the {x} up",
        "turn the {x} up", "bring the {x} up", "step up the {x}", "pump up the {x}", "push the {x} of {n} up",
        "~more {x}", "~higher {x}", "~{x} up", "~too little {x}", "~not enough {x}", "~the {x} is too low",
        "~way more {x}",
        "~i want more {x}", "move the {x} up", "~lacks {x}", "give {n} a lot more {x}", "~the {x} should go up",
        "take the {x} up", "~plus {x}", "amplify the {x}",
    ),
    "lower": (
        "decrease the {x}", "reduce the {x}", "lower the {x}", "drop the {x}", "cut the {x}", "dial the {x} down",
        "turn the {x} down", "take the {x} down", "step down the {x}", "tone down the {x}", "pull the {x} of {n} down",
        "push the {x} down", "~less {x}", "~lower {x}", "~{x} down", "~too much {x}", "~the {x} is too high",
        "~the {x} is too strong", "~way less {x}", "~i want less {x}", "move the {x} down", "bring the {x} of {n} down",
        "give {n} a lot less {x}", "~the {x} should go down", "pull down the {x}", "~minus {x}", "weaken the {x}",
    ),
    "remove": (
        "remove the {x}", "take the {x} away", "get rid of the {x}", "drop the {x}", "leave out the {x}", "~no {x}",
        "~without {x}", "take all {x} out of {n}", "lose the {x}", "delete the {x}", "~zero {x}", "strip away the {x}",
    ),
    "fault": ("~too {x}", "~it's far too {x}", "~looks too {x}", "~a bit too {x}", "~way too {x} for me", "~so {x}",
              "~why is it so {x}", "~this came out way too {x}", "make {n} less {x}", "~less {x}"),
    "act": ("{x}", "{x} completely", "just {x}", "{x} all over", "simply {x}", "{x} a lot", "really {x}", "do {x}"),
}  # fmt: skip

_TINTS = {
    f"{color}_tint": {
        "adjective": names,
        "thing": (
            *(f"{article} {name} {what}" for article, name in said for what in ("filter", "cast", "overlay", "glow",
                                                                                 "hue", "wash", "shade")),
            *(f"{name} light" for _, name in said), f"a layer of {color}", f"a coat of {color}", f"lots of {color}",
        ),
        "result": (f"a {color} photo", f"a {color} world"),
        "raise": (color,),
        "act": (
            *(f"{act} {{n}} {color}" for act in ("paint", "stain", "wash", "colour", "flush", "shade", "recolor")),
            *(f"{act} {color}" for act in ("flood {n} with", "soak {n} in", "fill {n} with", "drown {n} in", "shine",
                                           "dip {n} in")),
        ),
    }
    for color, names, said in (
        ("red", ("red", "reddish", "all red", "crimson"), (("a", "red"), ("a", "reddish"))),
        ("green", ("green", "greenish", "all green", "emerald"), (("a", "green"), ("a", "greenish"))),
        ("blue", ("blue", "bluish", "all blue", "azure"), (("a", "blue"), ("a", "bluish"))),
        ("purple", ("purple", "violet", "all purple", "lilac"), (("a", "purple"), ("a", "violet"))),
    )
}  # fmt: skip

# Kind -> frame -> what fills it.
LEXICON: dict[str, dict[str, tuple[str, ...]]] = {
    **_TINTS,
    "brighter": {
        "adjective": ("brighter", "lighter", "better lit", "less dark", "less gloomy", "less dim", "luminous"),
        "raise": ("brightness", "light", "lightness", "luminance", "light level"),
        "fault": ("dark", "gloomy", "dim", "murky", "shadowy"),
        "thing": ("more light", "a lot of light", "extra brightness"),
        "act": ("illuminate {n}", "light {n} up", "lift the shadows of {n}", "expose {n} more"),
    },
    "darker": {
        "adjective": ("darker", "dimmer", "gloomier", "less bright", "less light", "shadier", "dusky"),
        "lower": ("brightness", "light", "lightness", "luminance", "light level"),
        "fault": ("bright", "light", "glaring", "blinding"),
        "thing": ("more darkness", "more shadow", "a lot of darkness"),
        "act": ("underexpose {n}", "take {n} down in light", "cast {n} into shadow", "shade {n}"),
    },
    "contrast_up": {
        "adjective": ("more contrasty", "high contrast", "higher in contrast", "stronger in contrast"),
        "raise": ("contrast", "tonal contrast", "contrast level"),
        "fault": ("low in contrast",),
        "thing": ("more contrast", "strong contrast", "hard contrast", "a high contrast look", "harsh contrast"),
        "act": ("spread the tones of {n} further apart", "separate light from dark in {n}", "harden the contrast",
                "make the contrast bolder", "make the contrast stronger"),
    },
    "contrast_down": {
        "adjective": ("less contrasty", "low contrast", "lower in contrast", "flatter", "flat", "softer in contrast"),
        "lower": ("contrast", "tonal contrast", "contrast level"),
        "fault": ("contrasty", "harsh", "high in contrast"),
        "thing": ("less contrast", "weak contrast", "soft contrast", "a low contrast look", "a flat tone",
                  "flatter tones"),
        "act": ("press the tones of {n} together", "even out light and dark", "tame the contrast",
                "calm the contrast", "make the contrast weaker", "make the contrast milder", "ease the contrast"),
    },
    "saturate": {
        "adjective": ("more colorful", "more vivid", "more saturated", "more vibrant", "colorful", "richer in color",
                      "vivid", "vibrant"),
        "raise": ("saturation", "color", "color intensity", "color strength", "vibrance", "colors"),
        "fault": ("colorless", "weak in color", "desaturated"),
        "thing": ("vivid colors", "strong colors", "rich colors", "vibrant colors", "intense colors", "more color",
                  "very rich colors", "stronger colors"),
        "act": ("enrich the colors", "deepen the colors", "strengthen every color", "push the colors up",
                "make every color richer"),
    },
    "mute": {
        "adjective": ("less colorful", "less vivid", "less saturated", "less vibrant", "muted", "weaker in color",
                      "more muted"),
        "lower": ("saturation", "color intensity", "color strength", "vibrance", "colors"),
        "fault": ("colorful", "vivid", "saturated", "gaudy", "garish"),
        "thing": ("muted colors", "weak colors", "subtle colors", "quiet colors", "less color", "toned down tones",
                  "weaker colors", "very subtle colors"),
        "act": ("calm the colors", "weaken every color", "dull the colors", "quiet the colors down",
                "drain some of the color"),
    },
    "black_and_white": {
        "adjective": ("black and white", "monochrome", "gray", "grayscale", "colorless", "b&w", "achromatic"),
        "thing": ("a black and white look", "a black and white filter", "a monochrome look", "shades of gray",
                  "gray tones only", "a grayscale filter", "black and white film"),
        "result": ("a black and white photo", "monochrome", "grayscale", "black and white", "a gray photo",
                   "a b&w shot", "shades of gray only"),
        "remove": ("color", "colors", "hues", "colour"),
        "act": ("let no color remain", "take every color away", "leave {n} without any color", "wipe out all color",
                "erase the colors", "kill the color"),
    },
    "sepia": {
        "adjective": ("sepia", "brown", "sepia toned", "brownish", "brown toned"),
        "thing": ("a sepia tone", "sepia", "a brown tone", "a sepia filter", "brown colors",
                  "a sepia wash"),
        "result": ("sepia", "a sepia photo", "a sepia print", "sepia tones", "a brown photo"),
        "act": ("brown {n}", "dip {n} in sepia", "stain {n} sepia"),
    },
    "warmer": {
        "adjective": ("warmer", "warm", "cozier", "more orange", "less cold", "less cool", "cozy"),
        "raise": ("warmth", "color temperature", "warm tones"),
        "fault": ("cold", "cool", "icy", "chilly"),
        "thing": ("warm colors", "warm light", "some warmth", "warmth", "a warm tone", "warm tones", "a warm feel",
                  "a cozy feel"),
        "act": ("heat {n} up", "shift {n} to orange", "bring the warmth up", "lay warm light over {n}",
                "move the colors to warm", "shift the colors to the warm side", "drag all tones towards warm",
                "slide the colors towards the warm side"),
    },
    "cooler": {
        "adjective": ("cooler", "cool", "colder", "icier", "more icy", "less warm", "cold and icy", "cold"),
        "lower": ("warmth", "color temperature", "warm tones"),
        "fault": ("warm", "orange", "hot"),
        "thing": ("cool colors", "cold light", "coolness", "a cool tone", "cold tones", "cool tones", "a cold feel",
                  "an icy feel", "some cold"),
        "act": ("chill {n}", "freeze {n}", "shift {n} to cold colors", "lay cold light over {n}",
                "move the colors to cold", "shift the colors to the cold side", "drag all tones towards cold",
                "slide the colors towards the cold side"),
    },
    "blur": {
        "adjective": ("blurry", "blurred", "out of focus", "fuzzy", "unfocused", "soft and blurry", "unsharp"),
        "raise": ("blur", "blurriness", "fuzziness"),
        "lower": ("sharpness", "focus", "detail"),
        "thing": ("blur", "a blur", "a strong blur", "a blur effect", "gaussian blur", "heavy blur", "a lot of blur",
                  "a blurring filter"),
        "result": ("a blurry photo", "a blur", "a fuzzy photo", "an unfocused shot"),
        "act": ("smear {n}", "smudge the details", "lose the details in blur", "soften the details away",
                "defocus {n}", "blur the details", "wipe the details out"),
    },
    "sharpen": {
        "adjective": ("sharper", "crisper", "sharp", "crisp", "more detailed", "less blurry", "less soft", "in focus"),
        "raise": ("sharpness", "detail", "clarity", "crispness", "edge definition", "details"),
        "fault": ("blurry", "soft", "unsharp", "fuzzy"),
        "thing": ("sharpening", "more sharpness", "crisp edges", "sharp details", "a sharpening filter",
                  "sharper edges", "crisp detail"),
        "remove": ("blur", "blurriness", "softness"),
        "act": ("bring out the details", "refocus {n}", "define the edges", "make the details stand out"),
    },
    "invert": {
        "adjective": ("inverted", "negative", "color inverted", "reversed in color"),
        "thing": ("inverted colors", "a negative effect", "an invert filter", "opposite colors", "color inversion",
                  "reversed colors", "complementary colors", "the opposite of all colors"),
        "result": ("a negative", "its negative", "a film negative", "an inverted photo", "an inversion",
                   "its opposite colors", "a color negative"),
        "act": ("swap every color for its complement", "exchange light for dark and dark for light",
                "turn light into dark", "turn dark into light and light into dark", "reverse all tones of {n}",
                "reverse {n}", "switch all colors to the opposite ones", "substitute each color by its opposite",
                "change every color to its opposite", "give every color its opposite", "flip light and dark",
                "exchange the colors for the opposite ones", "reverse dark and light tones", "negate {n}",
                "reverse what is light and what is dark in {n}", "make light areas dark and dark areas light",
                "reverse brights and darks", "trade light for dark in {n}", "turn black to white and white to black",
                "replace all tones by their opposites", "replace each color with its complement",
                "replace light with dark and dark with light", "put the opposite color everywhere"),
    },
    "vignette": {
        "adjective": ("darker at the edges", "dark around the corners", "darker in the corners",
                      "black at the borders"),
        "thing": ("a vignette", "dark corners", "a dark vignette", "dark edges", "a vignette effect", "darker borders",
                  "black corners", "vignetting", "shaded corners", "a dark frame around"),
        "act": ("black out the corners", "shadow the corners of {n}", "darken all around the edges",
                "dim the rim of {n}"),
    },
    "night": {
        "adjective": ("nocturnal", "like night", "like midnight", "moonlit", "nightly"),
        "thing": ("a night look", "moonlight", "a night mood", "a midnight look", "night lighting", "night",
                  "a moonlit mood"),
        "result": ("night", "a night scene", "midnight", "a night photo", "nighttime", "a moonlit scene", "late night"),
        "act": ("illuminate {n} by moonlight", "let only the moon light {n}", "bring the night into {n}",
                "let night fall on {n}", "light {n} by the moon"),
    },
    "old_photo": {
        "adjective": ("old", "antique", "vintage", "aged", "ancient", "old fashioned", "very old"),
        "thing": ("an old photo look", "a vintage look", "an antique look", "age", "a vintage filter", "an aged look",
                  "an old time look", "a retro look"),
        "result": ("an old photo", "an antique photograph", "a vintage print", "a very old photograph",
                   "an old album photo", "an ancient photo", "a photo from a century ago", "a grandma's photo"),
        "act": ("age {n}", "yellow {n} with age", "make {n} a hundred years old", "antique {n}"),
    },
    "fog": {
        "adjective": ("foggy", "misty", "hazy", "foggier", "full of fog", "covered in mist", "thick with fog"),
        "thing": ("fog", "mist", "haze", "a fog", "thick fog", "a misty mood", "dense fog", "drifting mist", "some fog",
                  "hazy air"),
        "result": ("a foggy scene", "a misty morning", "a hazy day", "a foggy place"),
        "raise": ("fog", "mist", "haze"),
        "act": ("fog {n} up", "veil {n} in mist", "let fog roll in", "wrap {n} in haze"),
    },
    "posterize": {
        "adjective": ("posterized", "like a poster", "like pop art", "poster like"),
        "thing": ("a poster effect", "posterization", "a pop art look", "fewer colors", "only few colors",
                  "a posterize filter", "bands of color", "a screen print look", "just a few colors"),
        "result": ("a poster", "pop art", "a pop art poster", "a screen print", "a printed poster"),
        "lower": ("number of colors", "color count", "amount of different colors"),
        "act": ("reduce {n} to few colors", "flatten the colors into bands", "print {n} as a poster"),
    },
    "solarize": {
        "adjective": ("solarized", "solarised", "partly inverted"),
        "thing": ("solarization", "a solarize effect", "a solarized look", "inverted highlights", "a solarize filter",
                  "the sabattier effect", "reversed highlights", "flipped highlights"),
        "result": ("a solarized photo", "a solarized print", "a solarization"),
        "act": ("flip the highlights", "invert the highlights only", "reverse only the bright parts"),
    },
    "sunset": {
        "adjective": ("like sunset", "golden", "golden like evening", "sunlit by evening", "like golden hour"),
        "thing": ("a sunset", "a sunset glow", "golden light", "golden hour light", "evening sun", "a golden sunset",
                  "evening light", "a setting sun", "sunset light", "sunset colors"),
        "result": ("a sunset", "golden hour", "a sunset scene", "an evening scene", "sunset"),
        "act": ("let the sun set on {n}", "bathe {n} in evening light", "gild {n}"),
    },
    "cinematic": {
        "adjective": ("cinematic", "like a movie", "more cinematic", "movie like", "filmic", "like hollywood"),
        "thing": ("a cinematic look", "a movie look", "teal and orange", "a teal orange grade", "a cinematic grade",
                  "hollywood colors", "a movie grade", "movie colors", "cinematic color grading"),
        "result": ("a movie still", "a film still", "a movie scene", "a hollywood film", "a movie", "cinema"),
        "act": ("grade {n} like a movie", "grade {n} teal and orange", "treat {n} like a film"),
    },
    "faded": {
        "adjective": ("faded", "washed out", "matte", "bleached", "pale and faded", "sun bleached", "more faded"),
        "thing": ("a faded look", "a matte look", "a washed out look", "a fade", "a matte fade", "milky blacks",
                  "faded colors", "a bleached look", "a matte finish"),
        "result": ("a faded photo", "faded film", "a washed out print", "a bleached print"),
        "act": ("bleach out {n}", "let {n} bleach in the sun", "wash {n} out", "fade out {n}", "let {n} go pale",
                "turn the blacks gray", "bleach the colors", "have {n} bleached", "fade the colors"),
    },
    "pixelate": {
        "adjective": ("pixelated", "blocky", "pixelly", "like pixel art", "like a mosaic", "low resolution", "8 bit"),
        "thing": ("big pixels", "a pixel effect", "a mosaic effect", "large pixels", "a mosaic", "pixelation",
                  "huge blocks", "a pixelate filter", "mosaic squares"),
        "result": ("pixel art", "a mosaic", "big pixels", "a blocky picture", "large squares", "an 8 bit game",
                   "blocks", "pixels"),
        "lower": ("resolution",),
        "act": ("cut {n} into blocks", "break {n} up into pixels", "chop {n} into blocks", "blow the pixels up"),
    },
    "sketch": {
        "adjective": ("hand drawn", "like a drawing", "sketched", "drawn", "like a sketch", "like line art"),
        "thing": ("a sketch effect", "a pencil effect", "a drawing look", "pencil lines", "a hand drawn style",
                  "a sketch filter", "only drawn lines"),
        "result": ("a sketch", "a drawing", "a pencil drawing", "a pencil sketch", "line art", "an outline drawing",
                   "a hand drawing", "an outline", "drawn lines"),
        "act": ("trace {n} in pencil", "outline {n}", "redraw {n} in pencil"),
    },
    "fix_exposure": {
        "thing": ("a proper exposure", "the right exposure", "correct exposure", "exposure correction",
                  "a better exposure", "a good exposure"),
        "adjective": ("well exposed", "correctly exposed", "properly exposed", "better exposed"),
    },
    "fix_white_balance": {
        "thing": ("white balance correction", "neutral colors", "natural colors", "correct colors",
                  "a correct white balance", "a neutral white balance", "color correction"),
        "adjective": ("color correct", "neutral in color", "natural in color", "color balanced"),
        "remove": ("color cast", "strange color cast", "tint", "odd cast"),
        "act": ("neutralize the colors", "correct the colors", "remove the color cast", "balance the colors"),
    },
    "make_pop": {
        "adjective": ("more striking", "more exciting", "less boring", "livelier", "eye catching", "catchier",
                      "punchy"),
        "thing": ("some pop", "more pop", "punch", "some punch", "more life", "excitement", "a pop", "energy", "wow"),
        "fault": ("boring", "lifeless", "bland"),
        "act": ("spice {n} up", "liven {n} up", "give {n} energy", "rescue {n} from boredom", "wake {n} up"),
    },
    "look_professional": {
        "adjective": ("professional", "better", "nicer", "more professional", "prettier", "more beautiful",
                      "good", "like a pro shot it", "better looking"),
        "thing": ("a professional look", "a retouch", "an enhancement", "a professional finish", "a pro touch",
                  "auto enhancement", "an overall improvement"),
        "result": ("a professional photo", "a pro photo", "professional work", "a better photo"),
        "raise": ("quality", "overall quality"),
    },
    "fix_lighting": {
        "thing": ("better lighting", "the right lighting", "good lighting", "balanced lighting",
                  "a lighting correction",
                  "lighting correction", "even lighting", "nicer lighting"),
        "adjective": ("well lit", "properly lit", "evenly lit"),
        "act": ("correct the light", "sort the light out", "balance the light", "repair the lighting"),
    },
}  # fmt: skip

# Words that say nothing of the edit; strewn around training instructions, they teach the model to pass them over.
FILLER = tuple(
    """hello hi dear friend buddy well honestly frankly actually basically maybe perhaps simply really quickly today
    tonight tomorrow boss client customer wife husband mother brother sister kids teacher team editor wants asked said
    told thinks hopes needs wishes wonder wondering thanks cheers sorry okay alright yeah yes right sure great nice
    would should could might possible option idea wish hope task job request favor time moment second minute project
    website album blog post page school work my your our his her them me us you what if how about so then again also
    still only here there please kindly soon later first next last bit little somehow anyway however though because
    before after when while for the a an to is are was be it that""".split()
)


def lexicon_cores(kind: str) -> Iterator[str]:
    """The cores that frames and lexicon make for a kind, in the notation of `cores`."""
    for frame, fillers in LEXICON.get(kind, {}).items():
        for pattern in FRAMES[frame]:
            for x in fillers:
                yield pattern.replace("{x}", x)
