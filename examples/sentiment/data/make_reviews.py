"""Writes reviews.csv: invented product reviews with the flaws of real data (missing values, quotes, line breaks).

usage: make_reviews.py > reviews.csv
"""
import csv, random, sys

rng = random.Random(20)

PRODUCTS = ["kettle", "backpack", "headset", "desk lamp", "blender", "keyboard", "raincoat", "tent", "coffee grinder",
            "phone case", "office chair", "water bottle", "vacuum cleaner", "watch", "speaker", "frying pan", "umbrella",
            "notebook", "toaster", "bicycle light", "sleeping bag", "mouse", "webcam", "jacket", "monitor"]

OPEN = {
    5: ["I love this {p}.", "Best {p} I have ever owned.", "This {p} exceeded my expectations in every way.",
        "Absolutely fantastic {p}!", "What a wonderful {p}.", "Five stars for this {p}, no doubt.",
        "I could not be happier with this {p}.", "A superb {p}, simply perfect."],
    4: ["A really good {p}.", "I am very pleased with this {p}.", "Solid {p} for the price.", "This {p} does its job well.",
        "Happy with the {p} so far.", "A nice {p}, I would buy it again.", "Good {p}, great value."],
    3: ["The {p} is okay, nothing special.", "An average {p}.", "Not bad, not good either.", "The {p} is mediocre.",
        "It works, but I expected more from this {p}.", "So-so {p}."],
    2: ["I am disappointed with this {p}.", "This {p} is not worth the money.", "Poor {p}, I would not buy it again.",
        "The {p} looked better in the pictures.", "Below average {p}.", "I expected a lot more from this {p}."],
    1: ["Terrible {p}.", "Worst {p} I have ever bought.", "This {p} is a complete waste of money.", "Avoid this {p} at all costs!",
        "I hate this {p}.", "Awful {p}, it broke after two days.", "Total junk, the {p} never worked."],
}
GOOD = ["The build quality is excellent.", "It arrived a day early and was well packed.", "Setting it up was easy and took five minutes.",
        "It feels sturdy and looks beautiful.", "The battery lasts forever.", "My whole family enjoys using it.",
        "Customer service was friendly and quick to help.", "It is quiet, light and comfortable.", "Works flawlessly every single day.",
        "The colour is gorgeous.", "Great attention to detail.", "It still looks like new after six months.",
        "I already recommended it to my friends.", "The instructions were clear.", "Fits perfectly and is a joy to use.",
        "Impressive performance for such a small price."]
FINE = ["The colour is a little different from the photo.", "Delivery took a week.", "The manual could be clearer.", "It is a bit heavier than I thought.",
        "I use it twice a week.", "The box was large.", "It comes in three sizes.", "My sister has the same one."]
BAD = ["The plastic feels cheap and flimsy.", "It stopped working after a week.", "Customer service ignored my emails.",
       "It arrived scratched and dirty.", "The battery dies within an hour.", "It is loud, ugly and uncomfortable.",
       "The handle snapped off on the first day.", "I want a refund.", "It smells horrible.", "Half of the parts were missing.",
       "The seams are coming apart already.", "It leaks all over the place.", "Nothing fits as described.", "I had to return it twice.",
       "Useless instructions and a confusing design.", "It overheats and I no longer trust it."]
MORE = {5: (GOOD, GOOD, FINE), 4: (GOOD, GOOD, FINE), 3: (FINE, FINE, BAD), 2: (BAD, BAD, FINE), 1: (BAD, BAD, BAD)}
QUOTES = ['As the label says, "handle with care".', 'My neighbour called it "the one to get".', 'The ad said "premium", so there.']

rows = []
for i in range(640):
    rating = rng.choices([5, 4, 3, 2, 1], weights=[26, 24, 10, 18, 22])[0]
    parts = [rng.choice(OPEN[rating])] + [rng.choice(rng.choice(MORE[rating])) for _ in range(rng.randint(1, 3))]
    if rng.random() < 0.08:
        parts.append(rng.choice(QUOTES))
    if rng.random() < 0.15:
        rng.shuffle(parts)
    product = rng.choice(PRODUCTS)
    text = ("\n" if rng.random() < 0.06 else " ").join(parts).format(p=product)
    if rng.random() < 0.08:
        text = text.lower()
    if rng.random() < 0.015:
        text = rng.choice(["", "NA", "N/A"])
    stars = "" if rng.random() < 0.02 else str(rating)
    rows.append([str(i + 1), product, text, stars])

out = csv.writer(sys.stdout, lineterminator="\n")
out.writerow(["review_id", "product", "review_text", "rating"])
out.writerows(rows)
