"""A grid differs in its two axes and in nothing else, and each cell is what Generate makes of the same settings."""

import pytest

from dermjax.studio import comparison

ASKED = {"prompt": "dermoscopy of one small brown mole", "model": "derm-tiny", "steps": 2, "size": 64, "seed": 7}


@pytest.mark.slow
def test_every_cell_is_what_its_settings_make(studio):
    axes = {"across": "guidance", "across_values": "1, 3.5", "down": "prompt word", "down_values": "brown, black"}
    job = studio.post("/api/compare", json=ASKED | axes).json()
    assert job["across"] == [1.0, 3.5] and job["down"] == ["brown", "black"] and job["steps"] == 8
    state = studio.ended(job["job"])
    cells = {each["place"]: each for each in state["images"]}
    assert (
        state["state"] == "done" and sorted(cells) == [0, 1, 2, 3] and {each["seed"] for each in cells.values()} == {7}
    )
    told = [(cells[n]["guidance"], "black" in cells[n]["prompt"]) for n in range(4)]
    assert told == [(1.0, False), (3.5, False), (1.0, True), (3.5, True)]
    alone = ASKED | {"guidance": 3.5, "count": 1, "prompt": ASKED["prompt"].replace("brown", "black")}
    again = studio.ended(studio.post("/api/generate", json=alone).json()["job"])
    files = [studio.get(f"/api/images/{each['image']}").content for each in (cells[3], again["images"][0], cells[2])]
    assert files[0] == files[1] != files[2]


def test_a_word_is_exchanged_where_it_stands_alone():
    """Not within a longer one, as it would be in "irregular" and in "reddish"."""

    class Studio:
        def put(self, client, cells):
            self.prompts = [cell["prompt"] for cell in cells]
            return {}

    studio = Studio()
    asked = {"prompt": "regular, irregular and reddish, red", "across": "prompt word", "down": "seed"}
    asked |= {"across_values": "regular, jagged \\1", "down_values": "7", "client": ""}
    comparison.submit(studio, **asked)
    assert studio.prompts == [asked["prompt"], "jagged \\1, irregular and reddish, red"]
    comparison.submit(studio, **asked | {"across_values": "red, black"})
    assert studio.prompts[1] == "regular, irregular and reddish, black"


@pytest.mark.parametrize(
    ("axes", "told"),
    [
        ({"down": "steps", "down_values": "1,2"}, "choose two things"),
        ({"across_values": "1, 1"}, "differ"),
        ({"across_values": "1, 0"}, "1 to 150"),
        ({"across_values": "1, <b>"}, "a whole number"),
        ({"across_values": ",".join(map(str, range(1, 20))), "down_values": "1, 2"}, "too many"),
        ({"across": "sampler", "across_values": "Euler, <script>"}, "not known"),
        ({"across": "prompt word", "across_values": "red, blue"}, "not in the prompt"),
        ({"across": "prompt word", "across_values": "mall, large"}, "not in the prompt"),
        ({"across": "lora_weight", "across_values": "0, 1"}, "choose a LoRA"),
        ({"across": "model"}, "one of"),
    ],
)
def test_what_is_no_grid_is_refused(studio, axes, told):
    usual = {"across": "steps", "across_values": "1, 2", "down": "guidance", "down_values": "2, 3"}
    response = studio.post("/api/compare", json=ASKED | usual | axes)
    assert response.status_code == 400 and told in response.json()["error"]
