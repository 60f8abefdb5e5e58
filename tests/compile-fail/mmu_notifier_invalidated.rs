//! A callback that has not stored its sequence has nothing to return.

use lazytlb::mmu_notifier::{Invalidated, Invalidating, MmuIntervalNotifier, NotifierKernel, WouldBlock};

struct Driver;

impl<K: NotifierKernel> MmuIntervalNotifier<K> for Driver {
    fn invalidate<'a>(&self, _: Invalidating<'a, K>) -> Result<Invalidated<'a, K>, WouldBlock> {
        Ok(Invalidated { finish: None, _invalidation: std::marker::PhantomData })
    }
}

fn main() {}
