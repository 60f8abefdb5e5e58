//! Lazy MMU mode on the machine: the library's own code, with tasks that lose their CPU between any two of its steps, and
//! interrupts that change page tables.
//!
//! [`World`] has one or two CPUs, and two tasks with a script each. Whoever runs may be interrupted by a timer, before any step at
//! which it can be preempted; the CPU goes to the other task then. With two CPUs the first task goes on on the second one.
//! What is checked ([`Rule`]) has the numbers that the literature of the mode gives it.
//!
//! * [`kernel`]: [`LabMmu`], the machine as the back ends see it;
//! * [`world`]: tasks, switches, interrupts, checks.

pub mod kernel;
pub mod world;

pub use kernel::{Flaw, LabMmu};
pub use world::{Arch, Rule, Step, World};
