//! [`Model`]: a program on a machine, under a generation of the API and an architecture.

use core::fmt;
use std::rc::Rc;

use lazytlb_machine::report::report;
use lazytlb_machine::{Config, Exploration, Found, Limits, Machine, Recording, Schedule, ScheduleError, Search};

use crate::names::{Api, Arch, Mutant};
use crate::program::Program;
use crate::world::World;

/// On what a program runs. Memory is sequentially consistent: what waits here waits in batches, queues and caches.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Setting {
    /// The generation of the API.
    pub api: Api,
    /// What the architecture defers.
    pub arch: Arch,
    /// A planted bug.
    pub mutant: Option<Mutant>,
}

impl Setting {
    /// Without a planted bug.
    pub fn new(api: Api, arch: Arch) -> Setting {
        Setting { api, arch, mutant: None }
    }
}

/// A program on a machine, ready to be explored.
pub struct Model {
    machine: Machine,
    world: Rc<World>,
    fingerprint: u64,
    mutant: Option<Mutant>,
}

impl fmt::Debug for Model {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Model").field("machine", &self.machine).finish_non_exhaustive()
    }
}

impl Model {
    /// Sets the machine up as the program wants it at the start.
    ///
    /// # Panics
    /// If the program names something that it does not have.
    pub fn new(program: &Program, setting: &Setting) -> Model {
        let machine = Machine::new(Config { cpus: program.cpus, bytes: 16 << 10, ticks: true, ..Config::default() });
        let world = World::set_up(&machine, program, setting);
        let fingerprint = Schedule::fingerprint(&format!("{program:?}"), &format!("{setting:?}"));
        Model { machine, world, fingerprint, mutant: setting.mutant }
    }

    /// What schedules of this model are for.
    pub fn fingerprint(&self) -> u64 {
        self.fingerprint
    }

    /// Explores the program. `progress` is told the number of executions now and then.
    pub fn explore(&self, search: Search, limits: Limits, progress: impl FnMut(u64)) -> Exploration {
        let mut exploration = self.world.kernel.runs(|| self.machine.explore_with(search, limits, progress));
        for found in &mut exploration.found {
            found.schedule.program = self.fingerprint;
        }
        exploration
    }

    /// Looks for the execution with the fewest preemptions that shows the same.
    pub fn shrink(&self, found: &Found) -> Found {
        const EXECUTIONS: u64 = 200_000;
        self.world.kernel.runs(|| self.machine.shrink(found, EXECUTIONS))
    }

    /// Replays a schedule and writes down what happens.
    ///
    /// # Errors
    /// If it does not fit this model.
    pub fn replay(&self, schedule: &Schedule) -> Result<Recording, ScheduleError> {
        self.world.kernel.runs(|| self.machine.replay(schedule, self.fingerprint))
    }

    /// Writes the report of what was found, from a replay of its schedule.
    ///
    /// `replay` is the command that replays it, if there is one.
    ///
    /// # Errors
    /// If the schedule does not fit this model.
    pub fn report(&self, found: &Found, replay: Option<&str>) -> Result<String, ScheduleError> {
        let recording = self.replay(&found.schedule)?;
        let facts = [
            ("What is mapped and what waits, in the end", self.world.facts(&self.machine)),
            ("Planted", self.mutant.iter().map(ToString::to_string).collect()),
        ];
        Ok(report(found, &recording, &facts, replay))
    }
}
