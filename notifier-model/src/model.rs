//! [`Model`]: a program on a machine, under a scheme of walks.

use core::ops::Deref;

use lazytlb_machine::{Config, Machine};

use crate::names::{Client, Mutant, Scheme};
use crate::program::Program;
use crate::world::World;

/// On what a program runs.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Setting {
    /// The scheme of walks.
    pub scheme: Scheme,
    /// A planted bug.
    pub mutant: Option<Mutant>,
    /// What all its devices are; `None` if they are of several kinds.
    pub client: Option<Client>,
    /// Whether the program must pass: nothing is planted, and all its clients are right.
    pub claimed: bool,
}

/// A program on a machine, ready to be explored. Memory is sequentially consistent.
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
        let machine = Machine::new(Config { cpus: program.tasks.len(), bytes: 32 << 10, ..Config::default() });
        let world = World::set_up(&machine, program, setting);
        Model(lazytlb_machine::Model::new(machine, world, program, setting))
    }
}
