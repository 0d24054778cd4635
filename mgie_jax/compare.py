"""Pictures of edits: before and after side by side with their words, and sheets of many."""

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

PANEL = (384, 768)  # shortest and longest admitted long side of a panel
MARGIN = 28
MIN_COLUMN = 320  # narrower captions are tiresome to read
INK, SOFT_INK, PAPER = "#1c1c1e", "#8a8a8e", "#ffffff"


def compare_picture(before: Image.Image, after: Image.Image, instruction: str, expressive: str) -> Image.Image:
    """Both photos on white, captioned with the instruction (left) and the expressive instruction (right).

    Panels have the shape of `after`, scaled (Lanczos) to a long side of 384 to 768 pixels; `before` is
    fitted inside its panel without cropping. Captions wrap to the panel's width.
    """
    scale = min(max(max(after.size), PANEL[0]), PANEL[1]) / max(after.size)
    width, height = (max(1, round(side * scale)) for side in after.size)
    column = max(width, MIN_COLUMN)

    title, body = ImageFont.load_default(size=15), ImageFont.load_default(size=19)
    captions = [_wrap(f"\u201c{instruction}\u201d", body, column), _wrap(expressive, body, column)]
    line = 27
    text_top = MARGIN + height + 16
    canvas = Image.new(
        "RGB",
        (2 * column + 3 * MARGIN, text_top + 28 + line * max(map(len, captions)) + MARGIN - 6),
        PAPER,
    )
    draw = ImageDraw.Draw(canvas)
    panels = (("BEFORE, AND WHAT WAS ASKED", before), ("AFTER, AND THE EXPRESSIVE INSTRUCTION", after))
    for i, (name, picture) in enumerate(panels):
        left = MARGIN + i * (column + MARGIN)
        shown = _contain(picture.convert("RGB"), width, height)
        canvas.paste(shown, (left + (column - shown.width) // 2, MARGIN + (height - shown.height) // 2))
        draw.text((left, text_top), name, font=title, fill=SOFT_INK)
        for row, words in enumerate(captions[i]):
            draw.text((left, text_top + 26 + row * line), words, font=body, fill=INK)
    return canvas


def _contain(picture: Image.Image, width: int, height: int) -> Image.Image:
    scale = min(width / picture.width, height / picture.height)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    return picture.resize(size, Image.Resampling.LANCZOS)


def _wrap(text: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    """Break text into lines no wider than `width` pixels, inside a word only where it alone is too wide."""
    lines, line = [], ""
    for word in text.split():
        while font.getlength(word) > width:
            fits = next(n for n in range(len(word), 0, -1) if n == 1 or font.getlength(word[:n]) <= width)
            if line:
                lines, line = [*lines, line], ""
            lines, word = [*lines, word[:fits]], word[fits:]
        candidate = f"{line} {word}".strip()
        if font.getlength(candidate) <= width:
            line = candidate
        else:
            lines, line = [*lines, line], word
    return [*lines, line] if line else lines


def sheet(rows: Sequence[tuple[Sequence[Image.Image], str]], panel: int = 144, width: int = 1200) -> Image.Image:
    """Rows of pictures, each with a caption at its right: a contact sheet.

    Args:
        rows: (pictures, caption); a caption's own line breaks are kept.
        panel: height of the pictures, pixels.
        width: of the sheet.
    """
    font, gap, line = ImageFont.load_default(size=16), 10, 21
    canvas = Image.new("RGB", (width, (panel + gap) * len(rows) + gap), PAPER)
    draw = ImageDraw.Draw(canvas)
    for i, (pictures, caption) in enumerate(rows):
        left, top = gap, gap + i * (panel + gap)
        for picture in pictures:
            shown = picture.resize((round(picture.width * panel / picture.height), panel), Image.Resampling.LANCZOS)
            canvas.paste(shown, (left, top))
            left += shown.width + gap
        lines = [words for part in caption.split("\n") for words in _wrap(part, font, width - left - gap)]
        for row, words in enumerate(lines):
            draw.text((left, top + row * line), words, font=font, fill=INK)
    return canvas
