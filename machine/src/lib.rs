//! A deterministic multi-CPU machine, in which real code runs as coroutines and every interleaving can be explored.
//!
//! * [`Machine`]: memory, CPUs, tasks and agents, interrupts; what a simulated program may do.
//! * [`Sim`]: the [`Memory`](lazytlb_core::Memory) of the machine, for generic code.
//! * [`Search`]: exhaustive, bounded, random, PCT; [`Exploration`]: what was found, with a [`Schedule`] to see it again.
//! * [`Verdict`]: what an execution is found guilty of; [`report`]: how it is told.
//! * [`Model`]: a world on its machine; [`names!`], [`rules!`]: what it runs under and must keep, by name.
//! * [`text`]: what readers of programs as text have in common.
//!
//! The machine knows nothing of address spaces.

mod arena;
mod context;
mod flow;
mod history;
mod machine;
mod mix;
mod model;
mod names;
mod object;
mod point;
mod policy;
mod record;
mod reduce;
pub mod report;
mod schedule;
mod search;
mod snapshot;
mod stacks;
mod state;
mod step;
mod symmetry;
pub mod text;
mod times;
mod verdict;
mod watchpoint;
mod weak;
mod weak_step;
mod word;

pub use lazytlb_kasan::ObjectKind;
pub use machine::{Config, Machine, MemoryModel, TaskId};
pub use model::{Model, World};
pub use object::Cache;
pub use record::LogLine;
pub use schedule::{Schedule, ScheduleError};
pub use search::{Exploration, Found, Limits, Outcome, Recording, Reduction, Search};
pub use state::Action;
pub use symmetry::Thing;
pub use times::Reach;
pub use verdict::{Kind, Verdict};
pub use watchpoint::Seen;
pub use word::{Bits, Sim, SimLocal, SimWord};
