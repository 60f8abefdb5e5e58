//! A ticket is good for one try, and for as long as the subscription.

use lazytlb::core::mm::AlwaysRefCounted;
use lazytlb::mmu_notifier::{IntervalSubscription, MmuIntervalNotifier, NotifierKernel};

fn is_used_twice<K, T>(subscription: &IntervalSubscription<K, T>, state: &mut u32)
where
    K: NotifierKernel<Mm: AlwaysRefCounted>,
    T: MmuIntervalNotifier<K> + Send + Sync + 'static,
{
    let ticket = subscription.read_begin();
    let _ = ticket.install(state, |state| *state = 1);
    let _ = ticket.install(state, |state| *state = 2);
}

fn outlives<K, T>(subscription: IntervalSubscription<K, T>, state: &mut u32)
where
    K: NotifierKernel<Mm: AlwaysRefCounted>,
    T: MmuIntervalNotifier<K> + Send + Sync + 'static,
{
    let ticket = subscription.read_begin();
    drop(subscription);
    let _ = ticket.install(state, |state| *state = 1);
}

fn main() {}
