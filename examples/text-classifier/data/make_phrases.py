"""Writes phrases.tsv: invented sentences about films, some of which say the opposite of what their adjective says.

usage: make_phrases.py > phrases.tsv
"""
import random

rng = random.Random(7)

GOOD = ["brilliant", "charming", "moving", "funny", "gripping", "beautiful", "clever", "warm", "original", "thrilling",
        "tender", "witty", "memorable", "convincing", "delightful", "graceful"]
BAD = ["dull", "tedious", "clumsy", "shallow", "predictable", "lifeless", "silly", "forgettable", "messy", "bland",
       "annoying", "hollow", "awkward", "pointless", "stale", "wooden"]
WHAT = ["film", "comedy", "drama", "thriller", "romance", "sequel", "documentary", "story", "debut", "western"]
PART = ["the acting", "the script", "the camera work", "the ending", "the music", "the dialogue", "the first half",
        "the cast", "the pace", "the direction"]
PLAIN = ["a {a} {w}", "{p} is {a}", "this {w} is {a} from beginning to end", "{p} is {a} and {b}", "a {a} and {b} {w}",
         "what a {a} {w} !", "i found {p} rather {a}", "a {w} with a {a} heart", "one of the most {a} films of the year",
         "{p} , {a} as it is , makes this {w} {b}", "it is {a} , it is {b} , and it knows it"]
TURNED = ["this {w} is not {a}", "{p} is never {a}", "anything but {a}", "a {w} that tries to be {a} and fails",
          "far from {a} , this {w} goes on and on", "not {a} , not {b} , not even {a} by accident",
          "i wanted {p} to be {a} , but it was not", "hardly a {a} moment in this {w}"]

print("sentence\tlabel")
seen = set()
while len(seen) < 2400:
    label = rng.randrange(2)
    turned = rng.random() < 0.35
    a, b = rng.sample(GOOD if label != turned else BAD, 2)
    text = rng.choice(TURNED if turned else PLAIN).format(a=a, b=b, w=rng.choice(WHAT), p=rng.choice(PART))
    text = text.replace("a original", "an original").replace("a annoying", "an annoying").replace("a awkward", "an awkward")
    if text not in seen:
        seen.add(text)
        print(f"{text}\t{label}")
