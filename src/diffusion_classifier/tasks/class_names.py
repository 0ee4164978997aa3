"""Class names that the maintainers of data sets publish, and those in the prompts of the paper's authors.

Names are in the order of the labels.
"""

from __future__ import annotations


def _listed(text: str) -> tuple[str, ...]:
    return tuple(" ".join(name.split()) for name in text.split(","))


DIGITS = tuple("0123456789")

CIFAR10 = _listed("airplane, automobile, bird, cat, deer, dog, frog, horse, ship, truck")

CIFAR100 = _listed("""
    apple, aquarium fish, baby, bear, beaver, bed, bee, beetle, bicycle, bottle, bowl, boy, bridge, bus, butterfly,
    camel, can, castle, caterpillar, cattle, chair, chimpanzee, clock, cloud, cockroach, couch, crab, crocodile, cup,
    dinosaur, dolphin, elephant, flatfish, forest, fox, girl, hamster, house, kangaroo, keyboard, lamp, lawn mower,
    leopard, lion, lizard, lobster, man, maple tree, motorcycle, mountain, mouse, mushroom, oak tree, orange, orchid,
    otter, palm tree, pear, pickup truck, pine tree, plain, plate, poppy, porcupine, possum, rabbit, raccoon, ray,
    road, rocket, rose, sea, seal, shark, shrew, skunk, skyscraper, snail, snake, spider, squirrel, streetcar,
    sunflower, sweet pepper, table, tank, telephone, television, tiger, tractor, train, trout, tulip, turtle,
    wardrobe, whale, willow tree, wolf, woman, worm""")

STL10 = _listed("airplane, bird, car, cat, deer, dog, horse, monkey, ship, truck")

PETS = _listed("""
    Abyssinian, American Bulldog, American Pit Bull Terrier, Basset Hound, Beagle, Bengal, Birman, Bombay, Boxer,
    British Shorthair, Chihuahua, Egyptian Mau, English Cocker Spaniel, English Setter, German Shorthaired,
    Great Pyrenees, Havanese, Japanese Chin, Keeshond, Leonberger, Maine Coon, Miniature Pinscher, Newfoundland,
    Persian, Pomeranian, Pug, Ragdoll, Russian Blue, Saint Bernard, Samoyed, Scottish Terrier, Shiba Inu, Siamese,
    Sphynx, Staffordshire Bull Terrier, Wheaten Terrier, Yorkshire Terrier""")

_CATS = _listed("""
    Abyssinian, Bengal, Birman, Bombay, British Shorthair, Egyptian Mau, Maine Coon, Persian, Ragdoll, Russian Blue,
    Siamese, Sphynx""")


def _kind_of_pet(breed: str) -> str:
    if breed == "American Bulldog":  # without a kind in the authors' file as well
        return breed
    return f"{breed} {'cat' if breed in _CATS else 'dog'}"


AUTHORS_PETS = tuple(map(_kind_of_pet, PETS))

FLOWERS102 = _listed("""
    pink primrose, hard-leaved pocket orchid, canterbury bells, sweet pea, english marigold, tiger lily, moon orchid,
    bird of paradise, monkshood, globe thistle, snapdragon, colt's foot, king protea, spear thistle, yellow iris,
    globe flower, purple coneflower, peruvian lily, balloon flower, giant white arum lily, fire lily,
    pincushion flower, fritillary, red ginger, grape hyacinth, corn poppy, prince of wales feathers, stemless gentian,
    artichoke, sweet william, carnation, garden phlox, love in the mist, mexican aster, alpine sea holly,
    ruby-lipped cattleya, cape flower, great masterwort, siam tulip, lenten rose, barbeton daisy, daffodil,
    sword lily, poinsettia, bolero deep blue, wallflower, marigold, buttercup, oxeye daisy, common dandelion, petunia,
    wild pansy, primula, sunflower, pelargonium, bishop of llandaff, gaura, geranium, orange dahlia,
    pink and yellow dahlia, cautleya spicata, japanese anemone, black-eyed susan, silverbush, californian poppy,
    osteospermum, spring crocus, bearded iris, windflower, tree poppy, gazania, azalea, water lily, rose, thorn apple,
    morning glory, passion flower, lotus, toad lily, anthurium, frangipani, clematis, hibiscus, columbine,
    desert-rose, tree mallow, magnolia, cyclamen, watercress, canna lily, hippeastrum, bee balm, air plant, foxglove,
    bougainvillea, camellia, mallow, mexican petunia, bromelia, blanket flower, trumpet creeper, blackberry lily""")

FLOWERS102_ALSO = {"pink yellow dahlia": "pink and yellow dahlia", "ball moss": "air plant"}
"""Names in TensorFlow Datasets, from which the hub's copy was made."""

FOOD101 = _listed("""
    apple pie, baby back ribs, baklava, beef carpaccio, beef tartare, beet salad, beignets, bibimbap, bread pudding,
    breakfast burrito, bruschetta, caesar salad, cannoli, caprese salad, carrot cake, ceviche, cheese plate,
    cheesecake, chicken curry, chicken quesadilla, chicken wings, chocolate cake, chocolate mousse, churros,
    clam chowder, club sandwich, crab cakes, creme brulee, croque madame, cup cakes, deviled eggs, donuts, dumplings,
    edamame, eggs benedict, escargots, falafel, filet mignon, fish and chips, foie gras, french fries,
    french onion soup, french toast, fried calamari, fried rice, frozen yogurt, garlic bread, gnocchi, greek salad,
    grilled cheese sandwich, grilled salmon, guacamole, gyoza, hamburger, hot and sour soup, hot dog,
    huevos rancheros, hummus, ice cream, lasagna, lobster bisque, lobster roll sandwich, macaroni and cheese,
    macarons, miso soup, mussels, nachos, omelette, onion rings, oysters, pad thai, paella, pancakes, panna cotta,
    peking duck, pho, pizza, pork chop, poutine, prime rib, pulled pork sandwich, ramen, ravioli, red velvet cake,
    risotto, samosa, sashimi, scallops, seaweed salad, shrimp and grits, spaghetti bolognese, spaghetti carbonara,
    spring rolls, steak, strawberry shortcake, sushi, tacos, takoyaki, tiramisu, tuna tartare, waffles""")

AIRCRAFT = _listed("""
    707-320, 727-200, 737-200, 737-300, 737-400, 737-500, 737-600, 737-700, 737-800, 737-900, 747-100, 747-200,
    747-300, 747-400, 757-200, 757-300, 767-200, 767-300, 767-400, 777-200, 777-300, A300B4, A310, A318, A319, A320,
    A321, A330-200, A330-300, A340-200, A340-300, A340-500, A340-600, A380, ATR-42, ATR-72, An-12, BAE 146-200,
    BAE 146-300, BAE-125, Beechcraft 1900, Boeing 717, C-130, C-47, CRJ-200, CRJ-700, CRJ-900, Cessna 172, Cessna 208,
    Cessna 525, Cessna 560, Challenger 600, DC-10, DC-3, DC-6, DC-8, DC-9-30, DH-82, DHC-1, DHC-6, DHC-8-100,
    DHC-8-300, DR-400, Dornier 328, E-170, E-190, E-195, EMB-120, ERJ 135, ERJ 145, Embraer Legacy 600,
    Eurofighter Typhoon, F-16A/B, F/A-18, Falcon 2000, Falcon 900, Fokker 100, Fokker 50, Fokker 70, Global Express,
    Gulfstream IV, Gulfstream V, Hawk T1, Il-76, L-1011, MD-11, MD-80, MD-87, MD-90, Metroliner, Model B200, PA-28,
    SR-20, Saab 2000, Saab 340, Spitfire, Tornado, Tu-134, Tu-154, Yak-42""")

OBJECTNET = _listed("""
    alarm clock, backpack, banana, band aid, basket, beer bottle, bench, bicycle, binder (closed), bottle cap,
    bread loaf, broom, bucket, butcher's knife, can opener, candle, cellphone, chair, clothes hamper,
    coffee/french press, combination lock, computer mouse, desk lamp, doormat, dress, dress shoe (men), drill,
    drinking cup, drying rack for plates, envelope, fan, frying pan, bath towel, hair dryer, hammer,
    dishrag or hand towel, helmet, iron (for clothes), jeans, keyboard, ladle, lampshade, laptop (open), lemon,
    letter opener, lighter, lipstick, match, measuring cup, microwave, mixing / salad bowl, monitor, mug,
    nail (fastener), necklace, orange, padlock, paintbrush, paper towel, pen, pill bottle, pillow, pitcher,
    plastic bag, plate, plunger, pop can, portable heater, printer, remote control, ruler, running shoe, safety pin,
    salt shaker, sandal, screw, shovel, skirt, sleeping bag, soap dispenser, sock, soup bowl, spatula, speaker,
    still camera, strainer, stuffed animal, suit jacket, sunglasses, sweater, swimming trunks, t-shirt, teapot,
    tennis racket, tie, toaster, toilet paper roll, trash bin, tray, tv, umbrella, vacuum cleaner, vase, wallet,
    watch, water bottle, weight (exercise), weight scale, wheel, whistle, wine bottle, winter glove, wok""")

OBJECTNET_ALSO = {
    "drying rack for dishes": "drying rack for plates", "full sized towel": "bath towel",
    "hand towel or rag": "dishrag or hand towel",
}  # fmt: skip
"""Names of its folders."""
