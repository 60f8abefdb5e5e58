//! The scheduler model: the library's switch path on the simulated machine, with tasks, page tables and a checker.
//!
//! * [`Program`]: what each CPU does; [`Statement`]s for every path of the switch path.
//! * [`Strategy`], [`Rules`]: what it runs under; [`Strategy::claims`] says where a strategy must pass.
//! * [`Model`]: the program on a machine; explore it, shrink what was found, replay it.
//! * [`mistakes`]: scripts that are wrong in every execution.
//! * [`generate`], [`well_formed`], [`mod@shrink`]: random programs that a correct kernel could run, and what is left of one that
//!   fails.
//! * [`seed`]: the bug that this project began with.

pub mod accounted;
mod audit;
pub mod generate;
pub mod invariants;
pub mod kernel;
pub mod litmus;
pub mod mistakes;
mod model;
pub mod mutants;
pub mod platform;
pub mod program;
mod report;
pub mod roam;
pub mod rule_mutants;
mod sched;
mod script;
pub mod seed;
pub mod shrink;
pub mod strategies;
pub mod tables;
pub mod tlb;
mod watch;
pub mod well_formed;
mod worker;
mod world;
mod wrapped_mutants;

pub use invariants::Invariant;
pub use litmus::{Litmus, LitmusError};
pub use model::{Model, Setting};
pub use mutants::Mutant;
pub use program::{InInterrupt, Program, Source, Statement, TaskDecl};
pub use strategies::{Rules, Strategy};
