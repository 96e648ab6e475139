"""The world's words in other languages, for alt texts that are true but not English.

The sentence forms avoid agreement between colour and noun ("a star of red colour"), so that a
table of words is grammar enough.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from pipeline.sources.scenes.vocabulary import BACKGROUNDS, COLOURS, SHAPES


@dataclass(frozen=True)
class Language:
    """Words by English name; `thing` joins shape and colour, `joint` things, `picture` the rest."""

    shapes: dict[str, str]
    colours: dict[str, str]
    places: dict[str, str]
    thing: str
    joint: str
    pictures: tuple[str, ...]

    def describe(self, things: Sequence[tuple[str, str]], background: str, picture: int) -> str:
        """Return a sentence about (shape, colour) pairs; `picture` picks the sentence form."""
        told = self.joint.join(
            self.thing.format(shape=self.shapes[shape], colour=self.colours[colour])
            for shape, colour in things
        )
        form = self.pictures[picture % len(self.pictures)]
        return form.format(things=told, place=self.places[background])


def _language(
    shapes: str, colours: str, places: str, *, thing: str, joint: str, pictures: tuple[str, ...]
) -> Language:
    def table(names: dict[str, object], words: str) -> dict[str, str]:
        return dict(zip(names, words.split("|"), strict=True))

    return Language(
        table(dict(SHAPES), shapes),
        table(dict(COLOURS), colours),
        table(dict(BACKGROUNDS), places),
        thing,
        joint,
        pictures,
    )


#: ISO 639-1 code -> language; words stand in the order of the vocabulary's tables.
LANGUAGES: Final[dict[str, Language]] = {
    "de": _language(
        "ein Kreis|ein Quadrat|ein Dreieck|ein Stern|ein Kreuz|ein Herz|eine Mondsichel|ein Pfeil",
        "Rot|Orange|Gelb|Grün|Türkis|Blau|Violett|Rosa|Weiß|Schwarz",
        "auf einer grünen Wiese|über dem ruhigen Meer|vor einem bewölkten Himmel|am Sandstrand|"
        "vor einer Backsteinmauer|auf einem Boden aus Holz|am Himmel bei Nacht|"
        "auf einem verschneiten Feld",
        thing="{shape} in {colour}",
        joint=" und ",
        pictures=("Zu sehen ist {things} {place}", "Schönes Foto: {things} {place}"),
    ),
    "fr": _language(
        "un cercle|un carré|un triangle|une étoile|une croix|un cœur|un croissant de lune|"
        "une flèche",
        "rouge|orange|jaune|verte|turquoise|bleue|violette|rose|blanche|noire",
        "dans une prairie|sur une mer calme|devant un ciel nuageux|sur une plage de sable|"
        "devant un mur de briques|sur un plancher en bois|dans le ciel de la nuit|"
        "dans un champ enneigé",
        thing="{shape} de couleur {colour}",
        joint=" avec ",
        pictures=("Voici {things} {place}", "Une photo avec {things} {place}"),
    ),
    "es": _language(
        "un círculo|un cuadrado|un triángulo|una estrella|una cruz|un corazón|una media luna|"
        "una flecha",
        "rojo|naranja|amarillo|verde|turquesa|azul|morado|rosa|blanco|negro",
        "en un prado|sobre un mar en calma|ante un cielo nublado|en una playa de arena|"
        "delante de una pared de ladrillo|sobre un suelo de madera|en el cielo nocturno|"
        "en un campo nevado",
        thing="{shape} de color {colour}",
        joint=" junto con ",
        pictures=("Una imagen con {things} {place}", "Aquí hay {things} {place}"),
    ),
    "it": _language(
        "un cerchio|un quadrato|un triangolo|una stella|una croce|un cuore|una mezzaluna|"
        "una freccia",
        "rosso|arancione|giallo|verde|turchese|blu|viola|rosa|bianco|nero",
        "su un prato|su un mare calmo|davanti a un cielo nuvoloso|su una spiaggia di sabbia|"
        "davanti a un muro di mattoni|su un pavimento di legno|nel cielo della notte|"
        "in un campo innevato",
        thing="{shape} di colore {colour}",
        joint=" insieme a ",
        pictures=("Ecco {things} {place}", "Una bella fotografia con {things} {place}"),
    ),
    "ru": _language(
        "круг|квадрат|треугольник|звезда|крест|сердце|полумесяц|стрелка",
        "красного|оранжевого|жёлтого|зелёного|бирюзового|синего|фиолетового|розового|белого|чёрного",
        "на лугу|над спокойным морем|на фоне облачного неба|на песчаном пляже|"
        "на фоне кирпичной стены|на деревянном полу|в ночном небе|на заснеженном поле",
        thing="{shape} {colour} цвета",
        joint=" и ",
        pictures=("На фотографии {things} {place}", "Красивая картинка: {things} {place}"),
    ),
    "ja": _language(
        "円|正方形|三角形|星|十字|ハート|三日月|矢印",
        "赤い|オレンジ色の|黄色い|緑の|青緑色の|青い|紫の|ピンクの|白い|黒い",
        "草原にある|穏やかな海の上にある|曇り空の前にある|砂浜にある|レンガの壁の前にある|"
        "木の床の上にある|夜空にある|雪原にある",
        thing="{colour}{shape}",
        joint="と",
        pictures=("{place}{things}", "{place}{things}の写真"),
    ),
}
