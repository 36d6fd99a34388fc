"""The purpose of each random number of a simulated clip. Slots of bodies are drawn once for each body, those of the
scene once for a clip. The number of a slot never changes once clips were made with it."""

from __future__ import annotations

from enum import IntEnum, unique


@unique
class Slot(IntEnum):
    """The slot of a draw, used with the data set's seed and the clip's id. A slot whose name ends in S begins a row."""

    # shapes, of each body
    PACE = 0  # how fast the body moves
    X = 1  # its horizontal place in the middle of the clip
    Y = 2  # its vertical place in the middle of the clip
    ANGLE = 3  # its angle
    SIZE = 4  # its size
    TURN = 5  # its place on its orbit
    FORM = 6  # bar, wedge or bowl
    # figures, of each body
    REACH = 10  # how far a motion goes
    TEMPO = 11  # how fast a motion is
    BEAT = 12  # the phase of a repeated motion
    PASSED = 13  # the progress of a motion that is done once
    YAW = 14  # how far the figure is turned from the usual direction of its action
    STILL_YAW = 15  # the direction of a distractor
    HEIGHT = 16  # the figure's height
    MIDDLE = 17  # its horizontal place
    GROUND = 18  # its vertical place
    FACING = 19  # whether it faces left or right
    STILL_ARMS = 20  # how far a distractor's arms are spread: 2
    # the scene
    SHAKES = 30  # the camera's drift: 8
    VIEWPOINT = 40  # the camera's viewpoint
    LOST = 45  # which frames are lost
    GRAIN = 50  # the angle of a background's dots
    GRADIENT = 51  # the angle of a background's gradient
    CHECKER = 52  # the size of a background's squares
    BAR = 55  # the place of the occluding bar
    BOXES = 60  # the boxes of a cluttered background: 4 for each of 6
    # colours, a row of 3 for each
    GROUND_TINTS = 100
    OTHER_TINTS = 104
    BAR_TINTS = 107
    BODY_TINTS = 110  # 10 for each body
