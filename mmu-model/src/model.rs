//! [`Model`]: a program on a machine, under a generation of the API and an architecture.

use core::ops::Deref;

use lazytlb_machine::{Config, Machine};

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
#[derive(Debug)]
pub struct Model(lazytlb_machine::Model<World>);

impl Deref for Model {
    type Target = lazytlb_machine::Model<World>;

    fn deref(&self) -> &Self::Target {
        &self.0
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
        Model(lazytlb_machine::Model::new(machine, world, program, setting))
    }
}
