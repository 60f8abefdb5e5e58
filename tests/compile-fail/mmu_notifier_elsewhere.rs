//! Callbacks run on any CPU: a subscriber that is one thread's only cannot subscribe.

use std::rc::Rc;

use lazytlb::core::mm::AlwaysRefCounted;
use lazytlb::mmu_notifier::{Mirror, MmapWrite, NotifierKernel, Subscription};

fn is_one_threads<K, T>(kernel: K, mmap: &mut impl MmapWrite<K>, subscriber: T)
where
    K: NotifierKernel<Mm: AlwaysRefCounted>,
    Rc<T>: Mirror<K>,
    T: 'static,
{
    let _ = Subscription::mirror(kernel, mmap, Rc::new(subscriber));
}

fn main() {}
