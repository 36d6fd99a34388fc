"""The times of the frames of a video, made into a clock that runs on."""

from __future__ import annotations

from statistics import median

LONGEST_GAP = 600.0  # seconds: a longer gap between two frames, of more than a hundred usual ones, is a jump


class Clock:
    """Joins the times of frames. Where a time is missing, goes back or jumps ahead by more than ten minutes, the clock
    goes on by the usual time between two frames, and later times follow from there. Equal times stay as they are.

    Sound times are returned as they are, to the bit.
    """

    def __init__(self, rate: float) -> None:
        self.rate, self.shift = rate, 0.0
        self.times: list[float] = []
        self.steps: list[float] = []
        self.jumps: list[int] = []  # the frames before which the clock jumps
        self.latest: list[float | None] = [None, None]  # of presentation and decoding, and how often each went back
        self.faults = [0, 0]

    @property
    def step(self) -> float:
        """The usual time between two frames lately, in seconds."""
        return median(self.steps[-1000:]) if self.steps else 1 / self.rate

    def read(self, presented: float | None, decoded: float | None) -> float:
        """Return the time of the next frame, from its presentation and its decoding time; all in seconds."""
        index, time = len(self.times), self._best(presented, decoded)
        if not index:
            self.times.append(0.0 if time is None else time)
            return self.times[-1]
        last = self.times[-1]
        if time is None:
            joined = last + self.step if self.steps else self.times[0] + index / self.rate
        else:
            joined = time + self.shift if self.shift else time
            gap = joined - last
            if gap < 0 or (gap > LONGEST_GAP and gap > 100 * self.step):
                self.jumps.append(index)
                joined = last + self.step
                self.shift = joined - time
            elif gap > 0:
                self.steps.append(gap)
        self.times.append(joined)
        return joined

    def _best(self, presented: float | None, decoded: float | None) -> float | None:
        """Return the time that went back less often so far, as FFmpeg does: presentation times of packed B-frames are
        out of order."""
        for i, time in enumerate((presented, decoded)):
            latest = self.latest[i]
            if time is not None:
                self.faults[i] += latest is not None and time < latest
                self.latest[i] = time
        if presented is None or (decoded is not None and self.faults[0] > self.faults[1]):
            return decoded
        return presented

    @property
    def note(self) -> str:
        """What was done to the clock; "" if nothing was."""
        if not self.jumps:
            return ""
        more = f", and {len(self.jumps) - 1} more times" if len(self.jumps) > 1 else ""
        return f"its clock jumps at frame {self.jumps[0]}{more}, and goes on by {self.step:.3g} s a frame there"
