//! A subscriber may be called for as long as its subscription is there, whoever has it: it borrows nothing.

use lazytlb::core::mm::AlwaysRefCounted;
use lazytlb::mmu_notifier::{Mirror, MmapWrite, NotifierKernel, Subscription};

fn borrows<'a, K, T>(kernel: K, mmap: &mut impl MmapWrite<K>, subscriber: T)
where
    K: NotifierKernel<Mm: AlwaysRefCounted>,
    T: Mirror<K> + Send + Sync + 'a,
{
    let _ = Subscription::mirror(kernel, mmap, subscriber);
}

fn main() {}
