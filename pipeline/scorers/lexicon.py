"""Word lists of the lexicon tagger: closed classes, visible attributes and common caption verbs.

Closed classes follow the Penn Treebank's function-word tags. The attribute list covers what
captions say about how things look (colour, size, material, texture, pattern, shape, age): many of
these words are nouns too ("orange", "glass"), and a lexicon alone cannot tell.
"""

from __future__ import annotations

from typing import Final


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


DETERMINERS: Final = _words(
    "a an the this that these those some any each every another both all no either neither several "
    "many few much more most such other his her its their my our your whose one two three four "
    "five six seven eight nine ten eleven twelve dozen hundred first second third next last same "
    "'s"
)

PREPOSITIONS: Final = _words(
    "of in on at by for with from into onto upon over under above below behind beside besides "
    "between among amongst amid through throughout across along around about against toward "
    "towards near off past inside outside within without beneath underneath during before after "
    "until till since than like as via per beyond opposite atop to aboard alongside"
)

PRONOUNS: Final = _words(
    "i you he she it we they me him them us himself herself itself themselves myself yourself "
    "who whom which what something someone somebody anything anyone nothing everything everyone "
    "there here where mine yours hers ours theirs"
)

AUXILIARIES: Final = _words(
    "is are was were be been being am 's 're 'm has have had having do does did can could will "
    "would shall should may might must n't not 'll 've cannot"
)

#: Conjunctions, particles and adverbs that are no visible property and name no thing.
OTHER_FUNCTION_WORDS: Final = _words(
    "and or but nor so yet if while when because although though whereas then also too very quite "
    "rather almost just only even still again ever never always often together away back down up "
    "out forward forwards backward backwards sideways ahead apart aside nearby outdoors indoors "
    "upside downhill uphill overhead left-hand today how why well now once twice please via "
    "slightly partly"
)

FUNCTION_WORDS: Final = DETERMINERS | PREPOSITIONS | PRONOUNS | AUXILIARIES | OTHER_FUNCTION_WORDS

#: Words that say how a thing looks, whether or not a dictionary also lists them as nouns.
VISIBLE_ATTRIBUTES: Final = _words(
    # colour
    "red green blue yellow orange purple violet pink brown black white gray grey teal cyan magenta "
    "turquoise maroon navy beige tan cream golden gold silver bronze olive lime indigo crimson "
    "scarlet lavender khaki amber blond blonde brunette colorful colourful colored coloured "
    "multicolored multicoloured pale dark light bright vivid dull blueish reddish greenish "
    # size
    "big large huge giant enormous massive small little tiny miniature tall short long wide narrow "
    "thick thin deep shallow high low fat slim "
    # material
    "wooden metal metallic plastic glass leather wool woolen woollen cotton silk denim brick stone "
    "concrete marble ceramic steel iron copper paper cardboard rubber straw wicker stuffed "
    # texture, pattern, state
    "speckled striped stripy spotted dotted checkered checked plaid plain patterned textured "
    "smooth rough shiny matte glossy fuzzy furry fluffy hairy soft hard wet dry muddy dirty "
    "clean snowy sandy grassy rocky dusty rusty sunny cloudy foggy "
    "rainy icy frozen solid hollow empty full "
    "open closed wavy bald bare barefoot shirtless naked "
    # shape and age
    "round square rectangular circular triangular oval flat curved straight pointed sharp old "
    "young new elderly ancient modern"
)

#: Verbs that captions use in finite form; dictionaries list most as nouns too ("jumps").
CAPTION_VERBS: Final = _words(
    "run walk stand sit jump play look ride hold swim climb watch pose smile talk wait leap catch "
    "throw chase carry wear eat drink sleep lie lay fly splash kick hit race ski surf skate "
    "dance sing read write point reach rest lean crawl slide skateboard snowboard cross take make "
    "show perform try pull push paddle fish cook work travel stare laugh cry hug kiss wave hang "
    "swing bike cycle drive park paint draw fight wrestle compete prepare attempt gather hike "
    "huddle float fall go come get give put use enjoy walk relax shake bite lick sniff dig roll "
    "spin flip skip march speak shop stop start leave move follow face touch cover feed help "
    "approach dive balance squat kneel crouch bend stretch tackle toss serve dribble shoot "
    "swim turn peer gaze grab bark trot gallop hop hide launch land blow yell shout scream "
    "celebrate cheer clap listen wade row sail cut clean wash sell buy dress"
)

#: Nouns that end in -ing and are things or times rather than actions.
ING_NOUNS: Final = _words(
    "building ceiling railing clothing painting wedding evening morning string ring wing king "
    "thing swing spring sling earring awning scaffolding drawing crossing opening landing "
    "lightning sibling duckling pudding stocking covering parking sing carving bedding "
    "something anything everything nothing"
)

#: Adverbs by ending are recognised in the tagger; these nouns and adjectives end in -ly too.
LY_EXCEPTIONS: Final = _words(
    "fly family belly jelly butterfly dragonfly lily bully assembly elderly lovely friendly ugly "
    "curly silly hilly smelly burly woolly lonely early holy bubbly"
)

#: Attributes that are things when no noun follows ("a glass", "a pile of straw").
MATERIALS: Final = _words(
    "glass leather wool cotton silk denim brick stone concrete marble steel iron copper paper "
    "cardboard rubber straw wicker metal plastic gold silver bronze square light orange lime "
    "cream olive"
)

#: Words listed as nouns too that are attributes when a noun follows.
ADJECTIVES_FIRST: Final = _words(
    "female male adult asian african american happy sad hot cold warm cool fresh raw ripe sweet "
    "senior junior public private main front rear double single upper lower inner outer heavy "
    "quick fast slow calm busy crowded fancy formal casual traditional military civilian safe dead "
    "sick drunk sleepy blind steep pregnant homeless stray wild"
)
