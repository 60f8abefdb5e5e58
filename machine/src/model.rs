//! [`Model`]: a world on its machine, to be explored, with what every kind of world needs for that.

use core::fmt;
use std::rc::Rc;

use crate::machine::Machine;
use crate::report::{Section, report};
use crate::schedule::{Schedule, ScheduleError};
use crate::search::{Exploration, Found, Limits, Recording, Search};

/// What runs on a machine.
pub trait World {
    /// Runs `f` with this as the world of the thread.
    fn runs<R>(&self, f: impl FnOnce() -> R) -> R;

    /// What reports say of it, as it stands in the end.
    fn facts(&self, machine: &Machine) -> Vec<Section>;
}

/// A world on its machine, ready to be explored.
pub struct Model<W> {
    machine: Machine,
    world: Rc<W>,
    fingerprint: u64,
}

impl<W> fmt::Debug for Model<W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Model").field("machine", &self.machine).finish_non_exhaustive()
    }
}

impl<W: World> Model<W> {
    /// Of a world that was set up on the machine, from a program and a setting that say all about it.
    pub fn new(machine: Machine, world: Rc<W>, program: &impl fmt::Debug, setting: &impl fmt::Debug) -> Model<W> {
        let fingerprint = Schedule::fingerprint(&format!("{program:?}"), &format!("{setting:?}"));
        Model { machine, world, fingerprint }
    }

    /// What schedules of this model are for.
    pub fn fingerprint(&self) -> u64 {
        self.fingerprint
    }

    /// Explores it. `progress` is told the number of executions now and then.
    pub fn explore(&self, search: Search, limits: Limits, progress: impl FnMut(u64)) -> Exploration {
        let mut exploration = self.world.runs(|| self.machine.explore_with(search, limits, progress));
        for found in &mut exploration.found {
            found.schedule.program = self.fingerprint;
        }
        exploration
    }

    /// Looks for the execution with the fewest preemptions that shows the same.
    pub fn shrink(&self, found: &Found) -> Found {
        const EXECUTIONS: u64 = 200_000;
        self.world.runs(|| self.machine.shrink(found, EXECUTIONS))
    }

    /// Replays a schedule and writes down what happens.
    ///
    /// # Errors
    /// If it does not fit this model.
    pub fn replay(&self, schedule: &Schedule) -> Result<Recording, ScheduleError> {
        self.world.runs(|| self.machine.replay(schedule, self.fingerprint))
    }

    /// Writes the report of what was found, from a replay of its schedule.
    ///
    /// `replay` is the command that replays it, if there is one.
    ///
    /// # Errors
    /// If the schedule does not fit this model.
    pub fn report(&self, found: &Found, replay: Option<&str>) -> Result<String, ScheduleError> {
        let recording = self.replay(&found.schedule)?;
        Ok(report(found, &recording, &self.world.facts(&self.machine), replay))
    }
}
