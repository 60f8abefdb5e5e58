//! A section ends in the task that began it.

use lazytlb::lazy_mmu::{LazyMmuArch, MaySleep};

fn is_sent<A: LazyMmuArch + Sync>(task: &mut MaySleep<'static, A>) {
    let section = task.enable();
    std::thread::scope(|scope| {
        scope.spawn(move || drop(section));
    });
}

fn main() {}
