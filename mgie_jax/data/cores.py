"""What people say for each kind of edit: the core phrases of the instructions, as data.

A core is an imperative ("make {n} brighter"), or, marked by a leading "~", a fragment or remark that stands
on its own ("~too dark"). `{n}` stands for the photo ("it", "this picture"). Local edits have more slots:
`{o}` the object, `{a}` the same with its article, `{b}` the replacement with its article, `{c}` a color,
`{p}` a place.

Per kind: the training cores, then after "||" the held-out cores, which training never sees.
"""

from __future__ import annotations

_GLOBAL = {
    "brighter": """
        make {n} brighter | brighten {n} | brighten {n} up | increase the brightness | turn up the
        brightness of {n} | raise the brightness | lighten {n} | add more light to {n} | make {n} lighter |
        give {n} more light | ~brighter | ~more light | ~much brighter | ~it's too dark | ~way too dark to
        see anything | boost the brightness || bump the brightness up | ~this came out too dark | make
        everything lighter and brighter | ~needs more light""",
    "darker": """
        make {n} darker | darken {n} | darken {n} a lot | decrease the brightness | turn down the
        brightness of {n} | lower the brightness | dim {n} | take away light from {n} | give {n} less light
        | reduce the light in {n} | ~darker | ~less light | ~much darker | ~it's too bright | ~way too
        bright for my eyes | dim the light || bring the brightness down | ~this came out too bright | make
        everything dimmer and darker | ~needs less light""",
    "contrast_up": """
        increase the contrast | add contrast to {n} | raise the contrast of {n} | boost the contrast | make
        {n} more contrasty | give {n} more contrast | turn up the contrast | make the darks darker and the
        lights lighter | strengthen the contrast | make {n} punchier | crank up the contrast of {n} | ~more
        contrast | ~high contrast | ~stronger contrast | ~not enough contrast | deepen the blacks and lift
        the whites || push the contrast up | ~needs way more contrast | make the contrast in {n} stronger |
        use a high contrast look""",
    "contrast_down": """
        reduce the contrast | lower the contrast of {n} | take contrast away from {n} | decrease the
        contrast | make {n} less contrasty | give {n} less contrast | turn down the contrast | flatten {n}
        | flatten the tones of {n} | soften the contrast | make the tones of {n} softer and flatter | ~less
        contrast | ~low contrast | ~softer contrast | ~too much contrast | bring the darks and lights
        closer together || pull the contrast down | ~the contrast is far too strong | make {n} low contrast
        | use a flatter tone""",
    "saturate": """
        make the colors stronger | increase the saturation | saturate {n} | boost the colors of {n} | make
        {n} more colorful | turn up the saturation | make the colors more vibrant | give {n} richer colors
        | raise the saturation of {n} | make {n} more vivid | intensify the colors | crank up the colors |
        ~more color | ~more saturation | ~vivid colors | ~the colors are too weak || push the saturation
        higher | ~needs stronger colors | make the colors of {n} vivid and rich | use very vibrant colors""",
    "mute": """
        mute the colors | reduce the saturation | desaturate {n} a bit | make the colors weaker | make {n}
        less colorful | turn down the saturation | tone down the colors of {n} | make the colors more
        subtle | give {n} muted colors | lower the saturation of {n} | soften the colors | make {n} less
        vivid | ~less color | ~less saturation | ~muted colors | ~the colors are too strong || pull the
        saturation lower | ~needs weaker colors | make the colors of {n} muted and subtle | use toned down
        colors""",
    "black_and_white": """
        make {n} black and white | turn {n} black and white | convert {n} to black and white | make {n}
        grayscale | convert {n} to grayscale | remove all color from {n} | take out all the color | make
        {n} monochrome | drain the color from {n} | get rid of the colors | strip the color out of {n} |
        ~black and white | ~b&w | ~grayscale | ~no color at all | use only shades of gray || render {n} in
        black and white | ~a monochrome version | leave no color in {n} | change {n} into shades of gray""",
    "sepia": """
        make {n} sepia | add a sepia tone to {n} | turn {n} sepia | apply a sepia filter | give {n} a sepia
        look | tone {n} brown | make {n} brown like sepia | convert {n} to sepia | use sepia colors | give
        {n} a brownish tone | put a sepia effect on {n} | ~sepia | ~sepia tone | ~brown tones | ~sepia
        filter | ~brownish monochrome || change {n} into sepia tones | ~a sepia version | let {n} have
        brown sepia colors | use a brown tone""",
    "warmer": """
        make {n} warmer | warm {n} up | add warmth to {n} | give {n} warmer colors | raise the color
        temperature | make the light warmer | shift the colors toward orange | warm up the tones of {n} |
        make {n} look cozy and warm | increase the warmth | use a warm white balance | ~warmer | ~warm
        tones | ~more warmth | ~too cold looking | make {n} less blue and more orange || bring some warmth
        into {n} | ~warmer light | give {n} a cozy warm feel | push the colors to the warm end""",
    "cooler": """
        make {n} cooler | cool {n} down | add coolness to {n} | give {n} cooler colors | lower the color
        temperature | make the light colder | shift the colors toward cyan | cool down the tones of {n} |
        make {n} look cold and icy | make {n} colder | use a cold white balance | ~cooler | ~cold tones |
        ~colder light | ~too warm looking | make {n} less orange and more icy || bring some cold into {n} |
        ~cooler light | give {n} an icy cold feel | push the colors to the cold end""",
    "red_tint": """
        add a red tint to {n} | tint {n} red | give {n} a red tint | make {n} reddish | put a red filter on
        {n} | apply a red overlay | color everything red | cover {n} in red | make {n} look red | turn {n}
        red | bathe {n} in red light | ~red tint | ~red filter | ~all red | ~reddish tone | use a red color
        wash || dye {n} red | ~a red overlay | lay a red tint over everything | shine red light on {n}""",
    "green_tint": """
        add a green tint to {n} | tint {n} green | give {n} a green tint | make {n} greenish | put a green
        filter on {n} | apply a green overlay | color everything green | cover {n} in green | make {n} look
        green | turn {n} green | bathe {n} in green light | ~green tint | ~green filter | ~all green |
        ~greenish tone | use a green color wash || dye {n} green | ~a green overlay | lay a green tint over
        everything | shine green light on {n}""",
    "blue_tint": """
        add a blue tint to {n} | tint {n} blue | give {n} a blue tint | make {n} bluish | put a blue filter
        on {n} | apply a blue overlay | color everything blue | cover {n} in blue | make {n} look blue |
        turn {n} blue | bathe {n} in blue light | ~blue tint | ~blue filter | ~all blue | ~bluish tone |
        use a blue color wash || dye {n} blue | ~a blue overlay | lay a blue tint over everything | shine
        blue light on {n}""",
    "purple_tint": """
        add a purple tint to {n} | tint {n} purple | give {n} a purple tint | make {n} violet | put a
        purple filter on {n} | apply a purple overlay | color everything purple | cover {n} in violet |
        make {n} look purple | turn {n} purple | bathe {n} in purple light | ~purple tint | ~violet filter
        | ~all purple | ~violet tone | use a purple color wash || dye {n} purple | ~a purple overlay | lay
        a violet tint over everything | shine violet light on {n}""",
    "blur": """
        blur {n} | make {n} blurry | add blur to {n} | make {n} out of focus | defocus {n} | soften {n}
        until details are gone | apply a strong blur | smear the details of {n} | make {n} fuzzy | put {n}
        out of focus | give {n} a soft blur | ~blurry | ~more blur | ~out of focus | ~soft and fuzzy | use
        a gaussian blur || apply blurring to {n} | ~a fuzzy blurred version | let {n} go out of focus |
        hide the details with blur""",
    "sharpen": """
        sharpen {n} | make {n} sharper | increase the sharpness | add sharpness to {n} | bring out the
        details | make the details sharper | make the edges crisp | give {n} crisper edges | enhance the
        details of {n} | raise the sharpness of {n} | make {n} less blurry | ~sharper | ~more sharpness |
        ~crisper details | ~it's too soft | define the edges more || push the sharpness up | ~needs sharper
        edges | make every detail of {n} crisp | improve the sharpness""",
    "invert": """
        invert {n} | invert the colors | make {n} a negative | turn {n} into a negative | flip the colors
        of {n} | reverse the colors | swap light and dark | show the negative of {n} | apply a color
        inversion | make {n} inverted | use opposite colors | ~negative | ~inverted colors | ~film negative
        | ~opposite colors | give {n} inverted colors || make a negative out of {n} | ~a color inverted
        version | reverse light and dark in {n} | replace colors with their opposites""",
    "vignette": """
        add a vignette | darken the corners | make the edges of {n} dark | put a vignette on {n} | give {n}
        a vignette | darken the borders of {n} | fade the corners to black | shade the edges | add dark
        corners to {n} | apply a vignette effect | make the corners black | ~vignette | ~dark corners |
        ~dark edges | ~vignette effect | focus on the middle with a vignette || surround {n} with a dark
        vignette | ~darker corners | let the edges fall into black | shade all four corners""",
    "night": """
        make {n} look like night | turn day into night | make it nighttime | change {n} to night | give {n}
        a night look | make {n} look like it was taken at night | turn {n} into a night photo | set {n} at
        midnight | add moonlight to {n} | make {n} nocturnal | change the time to night | ~night | ~at
        night | ~nighttime look | ~as if it was taken at midnight | put {n} under moonlight || let night
        fall over {n} | ~like it was shot at midnight | make the sky go dark as in the night | light {n}
        with moonlight only""",
    "old_photo": """
        make {n} look old | make {n} look like an old photograph | age {n} | give {n} an old look | turn
        {n} into an antique photo | make {n} vintage | give {n} an antique look | make {n} look a hundred
        years old | add age to {n} | make {n} look like grandma's album | use a vintage style | ~old photo
        | ~vintage look | ~antique style | ~like from an old album | make {n} look like it was taken in
        1900 || let {n} look ancient and old | ~a vintage album look | make this seem a century old | turn
        {n} into a very old print""",
    "fog": """
        add fog | make {n} foggy | put fog in {n} | add haze to {n} | make {n} misty | cover {n} in fog |
        fill {n} with mist | make the weather foggy | wrap {n} in haze | let fog roll in | make {n} look
        hazy | ~fog | ~foggy weather | ~misty morning | ~hazy look | hide {n} behind a thick mist ||
        surround everything with fog | ~a foggy day | let mist drift through {n} | make the air hazy and
        thick""",
    "posterize": """
        posterize {n} | make {n} look like a poster | reduce the number of colors | use only a few colors |
        give {n} a poster look | turn {n} into pop art | apply a posterize effect | limit the colors of {n}
        | make {n} look like a screen print | simplify the colors | flatten the colors into bands |
        ~posterize | ~poster effect | ~pop art style | ~fewer colors | ~like a printed poster || turn {n}
        into a poster | ~a pop art print | restrict {n} to few colors | cut the colors down to bands""",
    "solarize": """
        solarize {n} | apply a solarize effect | add solarization to {n} | invert only the highlights |
        give {n} a solarized look | make the bright parts go dark | reverse the highlights | make {n} look
        solarized | use solarization | do the darkroom solarize trick | flip the bright tones of {n} |
        ~solarize | ~solarized | ~solarization effect | ~inverted highlights | make {n} surreal with
        solarization || render {n} as solarized | ~a solarized version | turn the highlights of {n} upside
        down | flip just the highlights""",
    "sunset": """
        make {n} look like sunset | add a sunset glow | make it golden hour | give {n} a golden glow | turn
        the light golden | add evening light to {n} | make {n} look like it was taken at sunset | light {n}
        with a setting sun | give {n} a sunset mood | change the time to sunset | paint {n} with golden
        light | ~sunset | ~golden hour | ~sunset light | ~evening glow | let the sun go down in {n} ||
        bring a golden sunset to {n} | ~like at golden hour | make the sun set over {n} | fill {n} with
        evening sun""",
    "cinematic": """
        make {n} cinematic | give {n} a cinematic look | make {n} look like a movie | apply a teal and
        orange grade | color grade {n} | use teal and orange colors | make {n} look like a film still |
        give {n} a hollywood look | add a movie color grade | turn {n} into a movie scene | grade {n} like
        a blockbuster | ~cinematic | ~teal and orange | ~movie look | ~hollywood colors | make the shadows
        teal || color {n} like a hollywood film | ~a cinematic grade | let {n} feel like a movie | do a
        teal orange grading""",
    "faded": """
        fade {n} | make {n} faded | give {n} a faded film look | make {n} look washed out | wash out the
        colors | lift the blacks of {n} | add a matte fade | give {n} a matte look | make {n} look bleached
        by the sun | make the blacks milky | apply a faded matte filter | ~faded | ~faded film | ~washed
        out | ~matte look | make {n} look pale and faded || let the colors of {n} fade away | ~a washed out
        matte style | bleach {n} | turn the blacks milky""",
    "pixelate": """
        pixelate {n} | make {n} pixelated | turn {n} into big pixels | give {n} a pixel look | apply a
        mosaic effect | make {n} look like an old video game | break {n} into squares | turn {n} into a
        mosaic | make {n} low resolution | use huge pixels | censor {n} with pixels | ~pixelate | ~pixel
        art | ~mosaic | ~big pixels | make {n} blocky || render {n} in large pixels | ~a blocky pixel
        version | chop {n} up into mosaic squares | make {n} like 8 bit pixel art""",
    "sketch": """
        turn {n} into a sketch | make {n} look like a drawing | make a pencil drawing of {n} | draw {n}
        with a pencil | convert {n} to a sketch | sketch {n} | give {n} a hand drawn look | make {n} look
        like a pencil sketch | turn {n} into line art | show only the outlines | apply a drawing effect |
        ~sketch | ~pencil drawing | ~line art | ~hand drawn | trace the outlines of {n} || redraw {n} as a
        sketch | ~a pencil version | make {n} into an outline drawing | leave just the drawn lines""",
}

_REPAIRS = {
    "fix_exposure": """
        fix the exposure | correct the exposure | fix the exposure of {n} | adjust the exposure | get the
        exposure right | repair the exposure of {n} | expose {n} correctly | make the exposure right |
        balance the exposure | set a proper exposure | ~the exposure is wrong | ~bad exposure | ~exposure
        problem | ~wrong exposure | ~it was badly exposed || sort out the exposure | ~exposure looks wrong
        to me | give {n} a correct exposure | improve the exposure of {n}""",
    "fix_white_balance": """
        fix the white balance | correct the white balance | fix the colors | remove the color cast | adjust
        the white balance of {n} | get rid of the color cast | neutralize the colors | make the whites
        white | correct the color cast of {n} | make the colors look natural | repair the color balance |
        ~wrong white balance | ~the colors are off | ~weird color cast | ~the whites aren't white || sort
        out the white balance | ~some strange color cast | give {n} natural colors | bring the colors back
        to neutral""",
    "make_pop": """
        make {n} pop | make the colors pop | give {n} some pop | make {n} stand out | add some punch to {n}
        | make {n} more striking | give {n} more life | liven {n} up | make {n} eye catching | spice {n} up
        | bring {n} to life | ~more pop | ~it's boring | ~needs some punch | ~too boring || let {n} really
        pop | ~it looks kind of boring | put more life into {n} | make {n} more exciting and striking""",
    "look_professional": """
        make {n} look professional | make {n} look better | enhance {n} | improve {n} | retouch {n} | give
        {n} a professional touch | make {n} look like a pro took it | edit {n} like a professional | do a
        professional retouch | make {n} nicer | improve the quality of {n} | ~professional look |
        ~professional quality | ~make it good | ~auto enhance || have {n} look like professional work | ~a
        pro quality retouch | make {n} much nicer and better | give {n} an overall enhancement""",
    "fix_lighting": """
        fix the lighting | correct the lighting | fix the light in {n} | improve the lighting of {n} | make
        the lighting better | adjust the lighting | even out the lighting | get the lighting right | repair
        the bad lighting | balance the light and shadow | ~the lighting is off | ~bad lighting | ~terrible
        lighting | ~the light is bad | ~poor light || sort out the lighting | ~lighting looks off to me |
        give {n} proper lighting | do something about the bad light""",
}

_LOCAL = {
    "add": """
        add {a} {p} | put {a} {p} | place {a} {p} | insert {a} {p} | draw {a} {p} | add {a} to {n} {p} |
        put {a} into {n} {p} | paste {a} {p} | include {a} {p} | let there be {a} {p} | show {a} {p} | have
        {a} appear {p} | ~{a} {p} | ~i want {a} {p} | ~there should be {a} {p} | ~i'd love to see {a} {p}
        || drop {a} {p} | ~we need {a} {p} | stick {a} onto {n} {p} | make {a} appear {p}""",
    "remove": """
        remove the {o} | delete the {o} | erase the {o} | take away the {o} | get rid of the {o} | take the
        {o} out | remove the {o} from {n} | cut out the {o} | erase the {o} from {n} | make the {o}
        disappear | clean away the {o} | drop the {o} | ~no {o} | ~without the {o} | ~no more {o} | wipe
        out the {o} || delete that {o} from {n} | ~i don't want the {o} | have the {o} removed | make that
        {o} go away""",
    "recolor": """
        make the {o} {c} | turn the {o} {c} | color the {o} {c} | change the {o} to {c} | paint the {o} {c}
        | change the color of the {o} to {c} | recolor the {o} {c} | give the {o} a {c} color | dye the {o}
        {c} | tint the {o} {c} | let the {o} be {c} | have the {o} in {c} | ~{c} {o} | ~the {o} should be
        {c} | ~i want the {o} {c} | switch the {o} to {c} || repaint the {o} in {c} | ~the {o} must be {c}
        | make the color of the {o} {c} | turn that {o} into a {c} one""",
    "replace": """
        replace the {o} with {b} | swap the {o} for {b} | change the {o} into {b} | turn the {o} into {b} |
        exchange the {o} for {b} | substitute {b} for the {o} | put {b} where the {o} is | make the {o} {b}
        | swap out the {o} for {b} | use {b} instead of the {o} | transform the {o} into {b} | switch the
        {o} for {b} | ~{b} instead of the {o} | ~i want {b} not the {o} | ~the {o} should be {b} | trade
        the {o} for {b} || replace that {o} by {b} | ~{b} rather than the {o} | have {b} instead of that
        {o} | make the {o} become {b}""",
}


def _read(table: dict[str, str]) -> dict[str, dict[str, tuple[str, ...]]]:
    """Kind -> split -> cores, from the tables above."""
    parsed = {}
    for kind, text in table.items():
        train, heldout = (part.split("|") for part in " ".join(text.split()).replace("||", "\n").split("\n"))
        parsed[kind] = {
            "train": tuple(core.strip() for core in train),
            "heldout": tuple(core.strip() for core in heldout),
        }
    return parsed


GLOBAL_CORES = _read(_GLOBAL)
REPAIR_CORES = _read(_REPAIRS)
LOCAL_CORES = _read(_LOCAL)
CORES = {**GLOBAL_CORES, **REPAIR_CORES, **LOCAL_CORES}
