//! A reference to the struct does not keep the contents: a task cannot be given it, and mmput is not mmdrop.

use lazytlb::{ARef, Mm, MmWithUser, Refcount, Task};
use lazytlb_toy::Toy;

type P = Toy<2, 1>;

fn revive(count: ARef<Mm<P, Refcount>>) -> ARef<MmWithUser<P, Refcount>> {
    count
}

fn fork(task: &Task<P>, count: ARef<Mm<P, Refcount>>) {
    unsafe { task.copy_mm(count) }
}

fn main() {}
