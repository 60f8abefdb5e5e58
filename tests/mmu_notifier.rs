//! Where the library's halves meet: a subscription keeps an address space's struct, and a CPU that borrows it does or does not. Whoever gives the last
//! reference back frees it, and under shootdown that is who takes the borrowers off it (C8 of the conformance suite).

use std::any::{Any, TypeId};
use std::cell::RefCell;
use std::collections::HashMap;
use std::marker::PhantomData;

use lazytlb::core::memory::At;
use lazytlb::core::mm_switch::BroadcastFlush;
use lazytlb::mmu_notifier::{
    Chain, Event, Hazards, Interrupted, Invalidation, Mirror, MmapWrite, MmuNotifier, NotifierKernel, NotifierMm,
    NotifierTask, PollingLock, Range, RangeGuard, RegisterError, Subscription,
};
use lazytlb::{ARef, HazardConvert, HazardIpi, LazyTlb, Memory, Mm, MmWithUser, NoLazy, Refcount, Shootdown};
use lazytlb_toy::{INIT_ROOT, Machine, Toy, on_cpu};

/// Two CPUs, whose masks have those that borrow.
type P = Toy<2, 1, BroadcastFlush>;

const ROOT: usize = 0xa000;

/// The thread's `T` of this key: statics cannot be generic.
fn leaked<T: Default + 'static>(key: usize) -> &'static T {
    type Leaked = HashMap<(TypeId, usize), &'static dyn Any>;
    thread_local! {
        static LEAKED: RefCell<Leaked> = RefCell::default();
    }
    let any = LEAKED.with_borrow_mut(|leaked| {
        *leaked.entry((TypeId::of::<T>(), key)).or_insert_with(|| Box::leak(Box::<T>::default()))
    });
    any.downcast_ref().expect("it was made with this type")
}

/// A kernel that has both, and whose mm is the library's.
struct Kernel<S>(PhantomData<S>);

impl<S> Kernel<S> {
    const NEW: Self = Kernel(PhantomData);
}

impl<S> Clone for Kernel<S> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<S> Copy for Kernel<S> {}

impl<S> Memory for Kernel<S> {
    type AtomicUsize = <P as Memory>::AtomicUsize;
    type AtomicPtr<T> = <P as Memory>::AtomicPtr<T>;
    type LocalUsize = <P as Memory>::LocalUsize;
    type LocalPtr<T> = <P as Memory>::LocalPtr<T>;

    fn fence(self, at: impl Into<At>) {
        P::NEW.fence(at);
    }
    fn spin_hint(self) {
        P::NEW.spin_hint();
    }
}

// SAFETY: one thread, which has one of each.
unsafe impl<S: LazyTlb<P> + 'static> NotifierKernel for Kernel<S> {
    type Mm = Mm<P, S>;
    type Lock = PollingLock<Self>;
    type WaitQueue = ();
    type Walks = Hazards<Self, 2>;

    fn new_wait_queue() {}
    fn walks(&self) -> &Self::Walks {
        leaked(0)
    }
    fn task(&self) -> &NotifierTask<Self::LocalUsize> {
        leaked(0)
    }
    fn wait_event<R>(self, (): &(), ready: impl FnMut() -> Option<R>) -> R {
        self.spin_until(ready)
    }
    fn wake_up_all(self, (): &()) {}
}

// SAFETY: the thread's, by the mm's root. (A kernel has it in its `MmData`.)
unsafe impl<S: LazyTlb<P> + 'static> NotifierMm<Kernel<S>> for Mm<P, S> {
    fn notifiers(&self) -> &Chain<Kernel<S>> {
        leaked(self.core().root().0)
    }
}

/// The mmap lock: there is one thread.
struct Mmap<'a, S: LazyTlb<P>>(&'a Mm<P, S>);

// SAFETY: one thread, which invalidates nothing meanwhile.
unsafe impl<S: LazyTlb<P> + 'static> MmapWrite<Kernel<S>> for Mmap<'_, S> {
    fn mm(&self) -> &Mm<P, S> {
        self.0
    }
    fn mm_users(&self) -> usize {
        self.0.core().users()
    }
    fn mm_take_all_locks(&mut self) -> Result<(), Interrupted> {
        Ok(())
    }
    fn mm_drop_all_locks(&mut self) {}
}

/// A device that mirrors the address space.
#[derive(Default, Debug)]
struct Device {
    told: std::sync::Mutex<Vec<&'static str>>,
}

impl Device {
    fn push(&self, what: &'static str) {
        self.told.lock().unwrap().push(what);
    }
}

impl<S: LazyTlb<P> + 'static> MmuNotifier<Kernel<S>> for Device {
    fn release(&self, _: &Mm<P, S>) {
        self.push("release");
    }
}

impl<S: LazyTlb<P> + 'static> Mirror<Kernel<S>> for Device {
    fn invalidate_range_start(&self, _: &Mm<P, S>, _: Invalidation<'_>) {
        self.push("start");
    }
    fn invalidate_range_end(&self, _: &Mm<P, S>, _: Invalidation<'_>) {
        self.push("end");
    }
}

fn subscribe<S: LazyTlb<P> + 'static>(
    mm: &Mm<P, S>,
) -> Result<Subscription<Kernel<S>, Device>, (RegisterError, Device)> {
    Subscription::mirror(Kernel::NEW, &mut Mmap(mm), Device::default())
}

/// CPU 1 borrows A; A's only user exits on CPU 0; the subscription is what is left of it, and is dropped on CPU 0. Where borrows are counted, A is freed when
/// the borrowers go on; where they are not, the drop frees A, and takes CPU 1 off it before.
fn the_last_reference_is_a_subscriptions<S: LazyTlb<P> + 'static>(strategy: S, counts_borrows: bool) {
    let machine = Machine::boot(P::NEW, strategy);
    let mm: ARef<MmWithUser<P, S>> = machine.mm(ROOT);
    let subscription = subscribe(&mm).unwrap();
    let range = Range::new(0..0x1000, Event::Unmap).unwrap();
    drop(RangeGuard::start(Kernel::NEW, &**mm, &range));
    assert_eq!(subscription.told.lock().unwrap().drain(..).collect::<Vec<_>>(), ["start", "end"]);

    let borrows = machine.switcher.strategy().borrows();
    let task = machine.user(mm);
    on_cpu(1, || {
        machine.switch(machine.idle[1], task);
        machine.switch(task, machine.idle[1]);
    });
    assert_eq!(machine.root(1), if borrows { ROOT } else { INIT_ROOT });
    on_cpu(0, || {
        machine.switch(machine.idle[0], task);
        // What exit_mmap begins with: nobody else translates by A from here on.
        subscription.mm().notifiers().release(Kernel::NEW, subscription.mm());
        // SAFETY: it runs.
        unsafe { machine.switcher.exit_mm(task) };
        machine.switch(task, machine.idle[0]);
        machine.work(0);
    });
    assert_eq!(*subscription.told.lock().unwrap(), ["release"]);
    assert_eq!(
        (machine.freed(), subscription.mm().core().users()),
        (vec![], 0),
        "the struct is kept, its users are gone"
    );

    on_cpu(0, || {
        drop(subscription);
        machine.work(0);
    });
    if borrows && counts_borrows {
        assert_eq!((machine.freed(), machine.root(1)), (vec![], ROOT), "the borrowers keep it");
    } else {
        assert_eq!((machine.freed(), machine.root(1)), (vec![ROOT], INIT_ROOT), "nobody is on what is freed");
    }
    // CPU 0 borrows it as well: its last user ran there.
    for cpu in [0, 1] {
        let other = machine.user(machine.mm(0xb000 + cpu));
        on_cpu(cpu, || machine.switch(machine.idle[cpu], other));
    }
    on_cpu(0, || machine.work(0));
    assert_eq!(machine.freed(), [ROOT], "freed once");
    assert_eq!(machine.warnings(), []);
}

#[test]
fn c8_who_counts_borrows_frees_when_the_borrower_goes_on() {
    the_last_reference_is_a_subscriptions(Refcount, true);
    the_last_reference_is_a_subscriptions(HazardConvert::new(), true);
}

#[test]
fn c8_who_does_not_frees_where_the_subscription_is_dropped() {
    the_last_reference_is_a_subscriptions(NoLazy, false);
    for debug_shoot_lazies in [false, true] {
        the_last_reference_is_a_subscriptions(Shootdown { debug_shoot_lazies }, false);
    }
    the_last_reference_is_a_subscriptions(HazardIpi::new(), false);
}

#[test]
fn c2_nobody_subscribes_to_what_has_exited() {
    let machine = Machine::boot(P::NEW, Refcount);
    let mm = machine.mm(0xc000);
    let kept = mm.mmgrab();
    drop(mm);
    assert_eq!(subscribe(&kept).map(drop).unwrap_err().0, RegisterError::NoUsers);
    drop(kept);
    assert_eq!(machine.freed(), [0xc000]);
}
