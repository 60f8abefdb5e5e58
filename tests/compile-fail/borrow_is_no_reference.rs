//! What a CPU borrows is not a reference that somebody could drop.

use lazytlb::{ARef, LazyMm, Mm, Refcount};
use lazytlb_toy::Toy;

type P = Toy<2, 1>;

fn keep(borrow: LazyMm<'_, P, Refcount>) -> ARef<Mm<P, Refcount>> {
    borrow
}

fn main() {}
