//! Subscriptions that several share: one of a kind for each address space, there as long as it has users.

use std::sync::atomic::{AtomicUsize, Ordering::*};
use std::sync::{Arc, Mutex};

use lazytlb_core::ARef;
use lazytlb_mmu_notifier::{
    Event, Invalidation, Mirror, MmuNotifier, Range, RangeGuard, RegisterError, SharedSubscription, SharedTables,
    Warning,
};
use lazytlb_toy_notifier::{ByHazards, Log, Recorder, Toy, ToyMm, run_work, warnings, without_worker};

type Mm = ToyMm<ByHazards>;
type K = Toy<ByHazards>;
type Shared<T = Recorder> = SharedSubscription<K, T>;

fn kernel() -> K {
    Toy::new()
}

fn get(mm: &Mm, name: &'static str, log: &'static Log) -> Shared {
    Shared::mirror(kernel(), &mut mm.mmap_write_lock(), || Recorder::new(name, log)).unwrap()
}

fn pair(mm: &Mm) {
    let range = Range::new(0x1000..0x3000, Event::Clear).unwrap();
    drop(RangeGuard::start(kernel(), mm, &range));
}

fn new() -> (ARef<Mm>, &'static Log) {
    (Mm::boxed(), <&Log>::default())
}

#[test]
fn c6_who_asks_again_gets_the_same() {
    let (mm, log) = new();
    let (one, again) = (get(&mm, "a", log), get(&mm, "b", log));
    assert_eq!((one.name, again.name), ("a", "a"));
    assert!(std::ptr::eq(&raw const *one, &raw const *again));
    assert_eq!(mm.count(), 2, "one reference for all");
    drop(one);
    pair(&mm);
    assert_eq!(log.take(), "a:start a:end", "it has a user still");
    drop(again);
    pair(&mm);
    assert_eq!((log.take().as_str(), mm.count()), ("a:release", 1));
    assert_eq!(get(&mm, "c", log).name, "c", "it was the last one");
}

#[test]
fn each_address_space_has_its_own() {
    let ((mm, log), (other, _)) = (new(), new());
    let all = [get(&mm, "a", log), get(&other, "b", log)];
    assert_eq!(all.each_ref().map(|one| one.name), ["a", "b"]);
}

/// A driver of another type.
#[derive(Default, Debug)]
struct Other;

impl MmuNotifier<K> for Other {
    fn release(&self, _: &Mm) {}
}

impl Mirror<K> for Other {
    fn invalidate_range_start(&self, _: &Mm, _: Invalidation<'_>) {}
    fn invalidate_range_end(&self, _: &Mm, _: Invalidation<'_>) {}
}

impl SharedTables<K> for Other {
    fn arch_invalidate_secondary_tlbs(&self, _: &Mm, _: usize, _: usize) {}
}

#[test]
fn another_type_is_another_subscriber_and_so_is_another_contract() {
    let (mm, log) = new();
    let one = get(&mm, "a", log);
    let other = Shared::<Other>::mirror(kernel(), &mut mm.mmap_write_lock(), Other::default).unwrap();
    let tables = Shared::<Other>::shared_tables(kernel(), &mut mm.mmap_write_lock(), Other::default).unwrap();
    assert_eq!(mm.count(), 4);
    drop((other, tables));
    assert_eq!((one.name, mm.count()), ("a", 2));
}

#[test]
fn a_subscription_of_ones_own_is_not_shared() {
    let (mm, log) = new();
    let own = lazytlb_mmu_notifier::Subscription::<K, _>::mirror(
        kernel(),
        &mut mm.mmap_write_lock(),
        Recorder::new("own", log),
    );
    assert_eq!(get(&mm, "a", log).name, "a");
    drop(own);
}

#[test]
fn c3_behind_the_end_of_the_address_space() {
    let (mm, log) = new();
    let one = get(&mm, "a", log);
    mm.users.store(0, Relaxed);
    mm.chain.release(kernel(), &mm);
    let none = Shared::mirror(kernel(), &mut mm.mmap_write_lock(), || Recorder::new("b", log));
    assert_eq!(none.unwrap_err(), RegisterError::NoUsers);
    drop(mm);
    assert_eq!(one.mm().count(), 1, "it has the last reference");
    drop(one);
    assert_eq!(log.take(), "a:release", "once");
}

#[test]
fn c2_who_cannot_subscribe_is_dropped() {
    let (mm, log) = new();
    mm.signal.store(1, Relaxed);
    let none = Shared::mirror(kernel(), &mut mm.mmap_write_lock(), || Recorder::new("a", log));
    assert_eq!(none.unwrap_err(), RegisterError::Interrupted);
    assert_eq!(mm.count(), 1);
}

/// A subscriber that lets go of its own subscription when it is told of a start.
#[derive(Clone, Default)]
struct LetsGo {
    own: Arc<Mutex<Option<Shared<LetsGo>>>>,
    told: Arc<AtomicUsize>,
}

impl MmuNotifier<K> for LetsGo {
    fn release(&self, _: &Mm) {
        self.told.fetch_add(100, Relaxed);
    }
}

impl Mirror<K> for LetsGo {
    fn invalidate_range_start(&self, _: &Mm, _: Invalidation<'_>) {
        self.told.fetch_add(1, Relaxed);
        drop(self.own.lock().unwrap().take());
    }
    fn invalidate_range_end(&self, _: &Mm, _: Invalidation<'_>) {}
}

fn lets_go(mm: &Mm) -> LetsGo {
    let one = LetsGo::default();
    let own = Shared::mirror(kernel(), &mut mm.mmap_write_lock(), || one.clone()).unwrap();
    *one.own.lock().unwrap() = Some(own);
    one
}

#[test]
fn c5_the_last_user_goes_in_a_callback_and_a_worker_does_the_rest() {
    let (mm, _) = new();
    let one = lets_go(&mm);
    pair(&mm);
    pair(&mm);
    assert_eq!(one.told.load(Relaxed), 2, "it is told until it is released");
    let another = Shared::mirror(kernel(), &mut mm.mmap_write_lock(), LetsGo::default).unwrap();
    assert!(!Arc::ptr_eq(&another.told, &one.told), "nobody finds it any more");
    assert_eq!(run_work(), 1);
    assert_eq!((one.told.load(Relaxed), Arc::strong_count(&one.told)), (102, 1), "released once, and freed");
    pair(&mm);
    assert_eq!((one.told.load(Relaxed), another.told.load(Relaxed), mm.count()), (102, 1, 2));
    assert_eq!(warnings(), []);
}

#[test]
fn who_puts_waits_for_nobody() {
    let (mm, log) = new();
    let (one, again) = (get(&mm, "a", log), get(&mm, "a", log));
    again.put();
    assert_eq!(run_work(), 0);
    one.put();
    assert_eq!((log.take().as_str(), mm.count()), ("", 2));
    assert_eq!(run_work(), 1);
    assert_eq!((log.take().as_str(), mm.count()), ("a:release", 1));
}

#[test]
fn without_a_worker_it_stays_and_is_warned_of() {
    let (mm, _) = new();
    let one = lets_go(&mm);
    without_worker();
    pair(&mm);
    pair(&mm);
    assert_eq!(warnings(), [Warning::NotUnsubscribed]);
    assert_eq!((one.told.load(Relaxed), mm.count()), (2, 2));
}
