"""Look at slides before work begins: what they are, what is wrong with them, and what to do. Writes nothing.

Comes in: slides, and labels where there are some. Goes out: an ``Inspection`` per slide, and tables or JSON
on the screen. What will fail in `tile` is a problem; what a user should know of a slide that works is a
remark.

``facts`` says what is known of a slide; ``look`` finds it out; ``probes`` are the few pixels that it reads;
``cohort`` looks at many, at their ids and at labels; ``screen`` prints.
"""

from wsi_mil.inspect.cohort import Cohort, inspect_slides
from wsi_mil.inspect.facts import Inspection, LevelFacts, Probe
from wsi_mil.inspect.look import inspect_slide
from wsi_mil.inspect.run import run

__all__ = ["Cohort", "Inspection", "LevelFacts", "Probe", "inspect_slide", "inspect_slides", "run"]
