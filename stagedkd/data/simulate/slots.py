"""What each random number of a simulated clip is for. The numbers of bodies are drawn per body, those of the scene once
for a clip; a number never changes once clips were made with it."""

from __future__ import annotations

from enum import IntEnum, unique


@unique
class Slot(IntEnum):
    """The slot of a draw, beside the data set's seed and the clip's index. A slot ending in S begins a row of them."""

    # shapes, of each body
    PACE = 0  # how fast it moves
    X = 1  # where it is in the middle of the clip, across
    Y = 2  # and downward
    ANGLE = 3  # how it is turned
    SIZE = 4  # how large it is
    TURN = 5  # where on its orbit it is
    FORM = 6  # bar, wedge or bowl
    # figures, of each body
    REACH = 10  # how far a motion goes
    TEMPO = 11  # how fast it is
    BEAT = 12  # at which point of a repeated motion the clip is
    PASSED = 13  # at which point of a motion that is done once
    YAW = 14  # how far the figure is turned from where its action looks
    STILL_YAW = 15  # where a distractor looks
    HEIGHT = 16  # its height
    MIDDLE = 17  # where it stands, across
    GROUND = 18  # and downward
    FACING = 19  # left or right
    STILL_ARMS = 20  # how far a distractor's arms are out: 2
    # the scene
    SHAKES = 30  # the camera's drift: 8
    VIEWPOINT = 40  # the camera's viewpoint
    LOST = 45  # which frames are lost
    GRAIN = 50  # how the dots of a background are turned
    GRADIENT = 51  # how the gradient of a background is turned
    CHECKER = 52  # the size of its squares
    BAR = 55  # where the occluding bar stands
    BOXES = 60  # the boxes of a cluttered background: 4 for each of 6
    # colours, a row of 3 for each
    GROUND_TINTS = 100
    OTHER_TINTS = 104
    BAR_TINTS = 107
    BODY_TINTS = 110  # 10 for each body
