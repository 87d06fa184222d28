"""Exchanges that are computed instead of written: sums, counting, copying, names and short stories.

Each function takes a random source and returns (what the user says, what the model answers).
"""

NUMBERS = """zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen
seventeen eighteen nineteen twenty""".split()

NAMES = """Ada Alan Alice Amir Anna Ben Bruno Carla Chen Clara Daniel David Diana Elena Emil Emma Eva Felix Finn Grace
Hana Henry Ida Ines Iris Ivan Jack Jan John Jonas Julia Kai Karl Kate Lara Lena Leo Lina Linus Lisa Lucy Luis Maria
Mark Marta Max Mia Mike Mila Nina Noah Nora Olga Omar Oscar Otto Paul Peter Petra Rita Robert Rosa Ruth Sam Sara Sofia
Steve Susan Tara Theo Tim Tom Uma Vera Victor Will Yara Yusuf Zoe""".split()

WORDS = """apple river stone cloud bread wheel garden window yellow green paper candle bridge forest silver morning
kettle basket lamp orange pencil table water flour mill gate token server key tier limit model cat dog house tree bird
fish book door light moon sun star rain snow wind fire road ship milk salt honey music dance letter mountain""".split()


def made_up(rng):
    """A word that nobody knows, such as `Torila`: it can only be copied, so the network has to learn to copy."""
    return "".join(rng.choice("bcdfghjklmnprstvwz") + rng.choice("aeiou") + rng.choice(["", "", "", "n", "r", "l", "s"]) for _ in range(rng.randint(1, 3)))


def sums(rng):
    """Addition, subtraction and multiplication of small numbers."""
    kind = rng.choice("++-*")
    if kind == "*":
        left, right = rng.randint(0, 10), rng.randint(0, 10)
        sign, result = rng.choice(["times", "*", "x", "multiplied by"]), left * right
    elif kind == "+":
        left, right = rng.randint(0, 20), rng.randint(0, 20)
        sign, result = rng.choice(["plus", "+", "+", "and"]), left + right
    else:
        left = rng.randint(0, 20)
        right = rng.randint(0, left)
        sign, result = rng.choice(["minus", "-", "-"]), left - right
    shown = (lambda n: NUMBERS[n]) if rng.random() < 0.2 and max(left, right) <= 20 else str
    frame = rng.choice(["what is X", "what's X", "how much is X", "calculate X", "compute X", "X", "X =", "can you tell me what X is", "what does X make", "add up X" if kind == "+" else "work out X"])
    spoken = {"+": "plus", "-": "minus", "*": "times"}[kind]
    return frame.replace("X", f"{shown(left)} {sign} {shown(right)}"), f"{left} {spoken} {right} is {result}."


def counting(rng):
    """Counting up or down in digits."""
    low, high = (1, rng.randint(3, 30)) if rng.random() < 0.8 else (lambda a: (a, a + rng.randint(2, 15)))(rng.randint(0, 30))
    numbers = list(range(low, high + 1))
    down = rng.random() < 0.2
    if down:
        numbers.reverse()
        said = rng.choice(["count down from {h}", "count backwards from {h}", "count down from {h} to {l}", "countdown from {h}"])
    elif low == 1:
        said = rng.choice(["count to {h}", "count to {h}", "count up to {h}", "can you count to {h}", "please count to {h}", "count from 1 to {h}", "list the numbers from 1 to {h}", "can you count up to {h} for me"])
    else:
        said = rng.choice(["count from {l} to {h}", "list the numbers from {l} to {h}", "numbers from {l} to {h}"])
    top = NUMBERS[high] if high <= 20 and rng.random() < 0.5 else high
    return said.format(h=top, l=low), ", ".join(map(str, numbers)) + "."


def copying(rng):
    """Repeating given words, which teaches the network to look back."""
    words = " ".join(rng.choice(WORDS) if rng.random() < 0.7 else made_up(rng) for _ in range(rng.randint(1, 6)))
    kind = rng.random()
    if kind < 0.6:
        said = rng.choice(["repeat after me: X", "say X", "please say X", "repeat: X", "repeat X", "write X", "say the words X", "echo X", 'repeat the words "X"', "can you say X"])
        return said.replace("X", words), words[0].upper() + words[1:] + "."
    if kind < 0.8:
        word = rng.choice(WORDS)
        return rng.choice(["spell X", "how do you spell X", "please spell the word X", "spell the word X", "spell out X"]).replace("X", word), "-".join(word.upper())
    chosen = words.split()
    return rng.choice(["sort these words: X", "sort X", "put these words in order: X", "sort the words X"]).replace("X", ", ".join(chosen)), ", ".join(sorted(chosen)) + "."


def greeting_by_name(rng):
    """Somebody says a name; returns also the name, which the conversation may ask for later."""
    name = rng.choice(NAMES) if rng.random() < 0.5 else made_up(rng).capitalize()
    said = rng.choice(["my name is X", "I am X", "I'm X", "hello, I am X", "hi, my name is X", "hello, my name is X", "call me X", "they call me X", "you can call me X", "hey, I'm X", "hi I'm X"])
    answer = rng.choice(["Nice to meet you, X! How can I help you?", "Hello X! What would you like to know?"])
    return said.replace("X", name), answer.replace("X", name), name


def asking_for_name(rng, name):
    """Asks for the user's name, which the model knows only if it was told."""
    said = rng.choice(["what is my name", "what's my name", "do you know my name", "who am I", "do you remember my name", "tell me my name", "can you tell me my name", "say my name"])
    return said, f"Your name is {name}." if name else "You have not told me your name yet."


HEROES = {
    "fox": "a young fox", "miller": "an old miller", "robot": "a small robot", "cat": "a grey cat", "dog": "a brave dog",
    "king": "a tired king", "girl": "a girl called Ida", "boy": "a boy called Leo", "owl": "a wise owl", "mouse": "a little mouse",
    "bear": "a gentle bear", "duck": "a proud duck", "dragon": "a shy dragon", "horse": "a white horse", "wizard": "a forgetful wizard",
    "princess": "a clever princess", "farmer": "a poor farmer", "baker": "a cheerful baker", "sailor": "a lonely sailor", "frog": "a green frog",
}
PLACES = ["beside a slow river", "in a quiet forest", "near an old mill", "on a high hill", "in a small town", "at the edge of the sea",
          "under a great oak", "in a house of stone", "behind the mountains", "on a little island"]
WISHES = [
    ("wanted to see the sea", "walked along the river for three days", "stood on the beach and laughed", "The longest road begins with one step."),
    ("had lost a golden key", "looked under every stone and behind every door", "found the key in an old boot", "What you seek is often close to home."),
    ("was afraid of the dark", "learned the name of every star", "was never afraid again", "What we know, we do not fear."),
    ("wished for a friend", "shared a warm loaf of bread with a stranger", "had a friend for life", "Who gives, receives."),
    ("wanted to be the fastest of all", "ran every morning before the sun rose", "came second and was happy all the same", "The road is better than the prize."),
    ("heard a strange song at night", "followed it to a broken wheel", "mended the wheel, and the song became sweet", "A little care mends much."),
    ("had too much to do", "asked the neighbours for help", "was done before the evening", "Many hands make light work."),
    ("took more water than the wheel could bear", "watched the wheel break", "built a gate that let in just enough", "Enough is better than too much."),
    ("found a letter without a name", "asked at every house in the valley", "brought it to the right door at last", "Patience opens every door."),
    ("could not sleep", "listened to the rain on the roof", "fell asleep and dreamed of summer", "Rest comes to those who listen."),
]
WEATHERS = ["It was a cold winter.", "It was a warm spring day.", "The leaves were falling.", "The summer was long.", "Snow lay on the fields.", "The wind was strong that year."]
HELPERS = ["An old woman gave good advice.", "A swallow showed the way.", "Nobody believed it would work.", "A passing merchant smiled and said nothing.", "The moon gave light.", "A frog told the truth for once."]


def story(rng, hero=None, wishes=None):
    """A short story: hero, place, wish, deed, end and a moral."""
    hero = hero or rng.choice(list(HEROES))
    wish, deed, end, moral = wishes or rng.choice(WISHES)
    lines = [f"Once upon a time {HEROES[hero]} lived {rng.choice(PLACES)}."]
    if rng.random() < 0.6:
        lines.append(rng.choice(WEATHERS))
    lines.append(f"The {hero} {wish}.")
    if rng.random() < 0.6:
        lines.append(rng.choice(HELPERS))
    lines += [f"So the {hero} {deed}.", f"In the end the {hero} {end}.", moral]
    return " ".join(lines)


def storytelling(rng):
    """Asks for a story, sometimes about a given hero, sometimes for a long one."""
    hero = rng.choice(list(HEROES))
    about = rng.random() < 0.55
    long = rng.random() < 0.08
    verb = rng.choice(["tell me", "write", "tell", "can you tell me", "write me", "please tell me", "I want to hear", "give me", "could you write", "make up", "invent", "I would like"])
    size = "long " if long else rng.choice(["", "", "short ", "little ", "nice "])
    article = "an" if hero[0] in "o" else "a"
    said = f"{verb} a {size}{rng.choice(['story', 'story', 'story', 'tale', 'fairy tale', 'bedtime story'])}"
    said += f" {rng.choice(['about', 'about', 'with', 'of'])} {rng.choice([article, article, 'the'])} {hero}" if about else ""
    if not about and rng.random() < 0.15:
        said = rng.choice(["story please", "a story please", "another story", "tell me another story", "one more story", "once upon a time", "do you know a story", "story time"])
    if not long:
        return said, story(rng, hero if about else None)
    chapters = rng.sample(WISHES, 3)
    return said, "\n\n".join(story(rng, hero, wishes) for wishes in chapters)
