"""Words that puzzles are told with: plain and common ones."""

from typing import Final


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


PEOPLE: Final = _words(
    "Ann Ben Cara Dan Eva Finn Gina Hugo Ida Jack Kim Leo Mia Nils Olga Paul Rosa Sam Tina Uwe "
    "Vera Will Yuri Zoe Adam Bella Carl Dora Emil Fay"
)
COLOURS: Final = _words("red blue green yellow black white brown pink")
OBJECTS: Final = _words(
    "lamp cup box ball book clock vase plate brush comb ring key bell kite drum mug bowl pen "
    "coin candle basket bottle button mirror ladder bucket pillow whistle magnet puzzle"
)
"""Things that can have any colour, size or material"""
PLACES: Final = _words(
    "mill well barn church market school harbour tower bridge garden forest lake farm inn bakery "
    "library museum station castle chapel quarry orchard meadow cave spring shrine theatre forge "
    "stable brewery windmill lighthouse monument ferry camp hospital bank shop dairy vineyard "
    "sawmill"
)
GROUPS: Final = {
    "fruits": "apples pears plums cherries lemons oranges bananas grapes peaches melons",
    "animals": "dogs cats horses cows goats ducks rabbits pigs geese hamsters",
    "tools": "hammers saws drills pliers chisels wrenches axes shovels rakes screwdrivers",
    "vegetables": "carrots onions potatoes cabbages leeks radishes turnips parsnips beets "
    "artichokes",
    "pieces of clothing": "shirts coats socks scarves hats skirts sweaters jackets gloves dresses",
    "musical instruments": "guitars flutes violins trumpets pianos cellos harps clarinets banjos "
    "trombones",
    "vehicles": "cars buses trucks bicycles trains tractors vans motorcycles trams scooters",
    "pieces of furniture": "tables chairs sofas desks beds benches stools wardrobes armchairs "
    "cupboards",
}
"""Things by the group that all agree they belong to"""
WORDS: Final = _words(
    """
    able about above act add adult after again age air all alone amount ankle answer apple apron
    arch area arm army arrow art ask aunt autumn awake
    baby back bad badge bag bake ball band bank bar bare bark barn barrel base basin basket bath
    battle beach bead beam bean bear beard beat bed bee before begin bell belt bench bend berry best
    bird bitter blade blame blanket blind block blood bloom blow board boat body bold bone book boot
    border bottom bowl box boy brain branch brave bread break breath brick bridge bright bring broad
    brook broom brother brown brush bucket build burn bush butter button buy
    cabin cable cage cake calm camel camp candle cap car carbon card care cargo carpet carrot carry
    cart case castle cat catch cattle cave ceiling chain chair chalk chance change chase cheap check
    cheek cheese cherry chest chicken chief child chin choose circle city clay clean clear clever
    cliff climb clock close cloth cloud coal coast coat coin cold collar colour comb come common
    cook copper copy cord corn corner cotton count country cousin cover cow crack cream creek crop
    cross crowd crown cry cup curtain curve cut
    daily dance danger dark date daughter dawn day dead deal dear deep deer desk dew dinner dirt
    dish distant doctor dog doll door double dough dove draw dream dress drink drive drop drum dry
    duck dust
    eager eagle ear early earth east easy eat edge egg elbow empty end engine enjoy enough entry
    equal even evening event every eye
    face fact fade fair faith fall false family famous far farm farmer fast fat father favour fear
    feast feather feed feel fence fern field fight fill film find fine finger fire firm first fish
    flag flame flat flax float flood floor flour flow flower fly fog fold follow food foot forest
    forget fork form fox frame free fresh friend frog front frost fruit full funny
    game garden gate gather gentle giant gift girl give glad glass glove goat gold good goose grain
    grand grape grass grave gravel great green greet grey ground group grow guard guess guest guide
    habit hair half hall hammer hand handle happy harbour hard hare harp harvest hat hay head heap
    hear heart heat heavy hedge help hen herb herd hidden high hill hold hole hollow home honest
    honey hook hope horn horse hot hotel hour house human hungry hunt hurry hut
    ice idea inch ink inn insect iron island ivory ivy
    jacket jam jar jaw jewel join joke journey joy judge juice jump jungle
    keen keep kettle key kick kind king kiss kitchen kite knee knife knock knot know
    lace ladder lake lamb lamp land lane large last late laugh law lazy lead leaf learn leather
    lemon lesson letter level lid lift light lily linen lion lip list listen little live load loaf
    lock log lonely long loose lost loud love low lucky lunch
    magic main make mango many map maple marble march mark market marsh mask master match meadow
    meal meat medal meet melon melt metal middle might mild milk mill mind mint minute mirror mist
    mix model moment money monkey month moon morning moss mother mountain mouse mouth move mud
    narrow near neat neck needle nephew nerve nest net never new nice night noble noise noon north
    nose note number nurse nut
    oak oar oat ocean offer oil old olive onion open orange order other otter oven owl own ox
    page pain paint pair palace pale palm pan paper parcel park part party pass past pasture path
    peace peach pear pearl pebble pen pencil people pepper perfect person piano picture piece pig
    pillow pilot pin pine pink pipe place plain plan plant plate play plenty plum pocket poem point
    polite pond pony pool poor post pot powder power praise present press pretty price pride prince
    print prize proud pull pump pupil pure push puzzle
    quarrel quarter queen quick quiet quilt
    rabbit race rain raise ranch rapid rare raven raw reach read ready real reason red reed rest
    return ribbon rice rich ride right ring ripe rise river road roast robin rock roof room root
    rope rose rough round row royal rubber rule run rush rust
    sad saddle safe sail salt same sand save saw scale scarf school score sea seal seat second
    secret seed sell send serve seven shade shadow shake shape share sharp sheep sheet shelf shell
    shine ship shirt shoe shop shore short shout show shower shy side sign silk silver simple sing
    sister sit six skate skill skin sky sleep slice slide slow small smart smell smile smoke smooth
    snail snake snow soap soft soil sold song soon sore sort soul sound soup sour south space spade
    spark speak spear speed spell spend spice spider spoon spot spring square stable staff stage
    stair stamp stand star stare start state station stay steam steel steep stem step stick still
    stone stool stop store storm story stove straw stream street string strong sugar summer sun
    sweet swim sword
    table tail tailor take tale tall tame taste teach team tear tell temple tent thank thick thief
    thin thing think third thorn thread three throat throne thumb ticket tide tiger tight timber
    time tin tiny tired toast today toe tomato tongue tool tooth top torch touch towel tower town
    toy track trade trail train travel tray tree trick trip true trunk trust truth tube tulip tune
    turn twelve twenty twig twin
    ugly uncle under unite until upper use useful usual
    valley value van vase velvet very vessel village vine violet visit voice vote
    wagon wait walk wall walnut want warm wash watch water wave wax weak wealth wear weather weave
    wedding week weigh well west wet whale wheat wheel whisper whistle white wide wife wild willow
    win wind window wine wing winter wire wise wish wolf woman wonder wood wool word work world worm
    wrap wrist write wrong
    yard year yellow yes young youth
    zebra zero zone
    """
)
"""Words of all lengths, many of which begin alike"""
