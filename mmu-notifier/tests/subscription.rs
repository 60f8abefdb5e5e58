//! Subscriptions that own what they need: whatever is dropped first, nobody is called who is free, and no mm is used that is.

use std::sync::atomic::{AtomicUsize, Ordering::*};
use std::sync::{Arc, Mutex, OnceLock};

use lazytlb_core::ARef;
use lazytlb_mmu_notifier::{
    Event, IntervalSubscription, Invalidated, Invalidating, Invalidation, Mirror, MmuIntervalNotifier, MmuNotifier,
    Range, RangeGuard, RegisterError, Retry, Subscription, UnregisterError, Warning, WouldBlock,
};
use lazytlb_toy_notifier::{ByHazards, Log, Recorder, Toy, ToyMm, run_work, warnings, without_worker};

type Mm = ToyMm<ByHazards>;
type K = Toy<ByHazards>;

fn kernel() -> K {
    Toy::new()
}

fn subscribe(mm: &Mm, recorder: Recorder) -> Subscription<K, Recorder> {
    Subscription::mirror(kernel(), &mut mm.mmap_write_lock(), recorder).map_err(|(error, _)| error).unwrap()
}

fn pair(mm: &Mm) {
    let range = Range::new(0x1000..0x3000, Event::Clear).unwrap();
    drop(RangeGuard::start(kernel(), mm, &range));
}

/// The users go.
fn exit(mm: &Mm) {
    mm.users.store(0, Relaxed);
    mm.chain.release(kernel(), mm);
}

#[test]
fn c1_dropped_it_is_released_and_gives_its_reference_back() {
    let (mm, log) = (Mm::boxed(), <&Log>::default());
    let one = subscribe(&mm, Recorder::new("a", log));
    assert_eq!((one.name, mm.count()), ("a", 2));
    pair(&mm);
    drop(one);
    pair(&mm);
    assert_eq!(log.take(), "a:start a:end a:release");
    assert_eq!(mm.count(), 1);
}

#[test]
fn who_unsubscribes_gets_its_subscriber_back() {
    let (mm, log) = (Mm::boxed(), <&Log>::default());
    let one = subscribe(&mm, Recorder::new("a", log));
    let recorder = one.unsubscribe().map_err(|(error, _)| error).unwrap();
    assert_eq!((recorder.name, mm.count()), ("a", 1));
    drop(subscribe(&mm, recorder));
    assert_eq!(log.take(), "a:release a:release");
}

/// Under Miri and the sanitizers this is a test of memory.
#[test]
fn c3_it_may_have_the_last_reference_to_the_mm() {
    let (mm, log) = (Mm::boxed(), <&Log>::default());
    let mirror = subscribe(&mm, Recorder::new("a", log));
    let tables = Subscription::shared_tables(kernel(), &mut mm.mmap_write_lock(), Recorder::new("t", log)).unwrap();
    let refusing = Subscription::refusing(kernel(), &mut mm.mmap_write_lock(), Recorder::new("r", log)).unwrap();
    let interval = interval(&mm);
    exit(&mm);
    assert_eq!((log.take().as_str(), mm.count()), ("r:release t:release a:release", 5));
    drop(mm);
    assert_eq!(mirror.mm().count(), 4);
    drop((mirror, tables, refusing, interval));
    assert_eq!(log.take(), "", "nobody is released again");
}

#[test]
fn c2_what_cannot_subscribe_is_given_back() {
    let mm = Mm::boxed();
    mm.signal.store(1, Relaxed);
    let one = Recorder::new("a", <&Log>::default());
    let (error, one) = Subscription::mirror(kernel(), &mut mm.mmap_write_lock(), one).unwrap_err();
    assert_eq!((error, one.name), (RegisterError::Interrupted, "a"));
    mm.users.store(0, Relaxed);
    let (error, _) = Subscription::mirror(kernel(), &mut mm.mmap_write_lock(), one).unwrap_err();
    assert_eq!(error, RegisterError::NoUsers);
    let none = IntervalSubscription::interval(kernel(), &mut mm.mmap_write_lock(), Interval::default(), 5, 0);
    assert_eq!(none.unwrap_err().0, RegisterError::NoInterval);
    assert_eq!(mm.count(), 1);
}

/// A subscriber that lets go of its own subscription when it is told of a start.
#[derive(Default)]
struct LetsGo {
    own: Mutex<Option<Subscription<K, Shared>>>,
    refused: OnceLock<UnregisterError>,
    drops: bool,
    called: AtomicUsize,
}

struct Shared(Arc<LetsGo>);

impl MmuNotifier<K> for Shared {
    fn release(&self, _: &Mm) {}
}

impl Mirror<K> for Shared {
    fn invalidate_range_start(&self, _: &Mm, _: Invalidation<'_>) {
        self.0.called.fetch_add(1, Relaxed);
        let Some(own) = self.0.own.lock().unwrap().take() else { return };
        if self.0.drops {
            drop(own);
        } else if let Err((error, still)) = own.unsubscribe() {
            self.0.refused.get_or_init(|| error);
            *self.0.own.lock().unwrap() = Some(still);
        }
    }
    fn invalidate_range_end(&self, _: &Mm, _: Invalidation<'_>) {}
}

fn lets_go(mm: &Mm, drops: bool) -> Arc<LetsGo> {
    let one = Arc::new(LetsGo { drops, ..LetsGo::default() });
    let shared = Shared(Arc::clone(&one));
    let own = Subscription::mirror(kernel(), &mut mm.mmap_write_lock(), shared).map_err(|(error, _)| error);
    *one.own.lock().unwrap() = Some(own.unwrap());
    one
}

#[test]
fn c5_who_unsubscribes_in_its_callback_is_told_and_stays() {
    let mm = Mm::boxed();
    let one = lets_go(&mm, false);
    pair(&mm);
    pair(&mm);
    assert_eq!((one.refused.get(), one.called.load(Relaxed)), (Some(&UnregisterError::InCallback), 2));
    let own = one.own.lock().unwrap().take();
    drop(own);
    assert_eq!((mm.count(), Arc::strong_count(&one)), (1, 1));
}

#[test]
fn c5_who_is_dropped_in_its_callback_is_told_until_a_worker_has_unsubscribed_it() {
    let mm = Mm::boxed();
    let one = lets_go(&mm, true);
    pair(&mm);
    pair(&mm);
    assert_eq!((one.called.load(Relaxed), mm.count()), (2, 2));
    assert_eq!(run_work(), 1);
    pair(&mm);
    assert_eq!((one.called.load(Relaxed), mm.count(), Arc::strong_count(&one)), (2, 1, 1), "freed");
    assert_eq!(warnings(), []);
}

#[test]
fn c5_who_is_dropped_in_its_callback_without_a_worker_is_warned_of_and_never_freed() {
    let mm = Mm::boxed();
    let one = lets_go(&mm, true);
    without_worker();
    pair(&mm);
    assert_eq!(warnings(), [Warning::NotUnsubscribed]);
    pair(&mm);
    assert_eq!(one.called.load(Relaxed), 2, "it stays subscribed");
    assert_eq!((mm.count(), Arc::strong_count(&one)), (2, 2), "and keeps what it needs");
}

/// A driver of one translation.
#[derive(Default, Debug)]
struct Interval {
    translation: Mutex<Option<usize>>,
}

impl MmuIntervalNotifier<K> for Interval {
    fn invalidate<'a>(&self, invalidating: Invalidating<'a, K>) -> Result<Invalidated<'a, K>, WouldBlock> {
        let mut translation = self.translation.lock().unwrap();
        let invalidated = invalidating.set_seq();
        *translation = None;
        Ok(invalidated)
    }
}

fn interval(mm: &ARef<Mm>) -> IntervalSubscription<K, Interval> {
    let mut mmap = mm.mmap_write_lock();
    let one = IntervalSubscription::interval(kernel(), &mut mmap, Interval::default(), 0x1000, 0x1000);
    one.map_err(|(error, _)| error).unwrap()
}

#[test]
fn c14_what_was_invalidated_meanwhile_is_not_installed() {
    let mm = Mm::boxed();
    let one = interval(&mm);
    let ticket = one.read_begin();
    let install = |translation: &mut Option<usize>| *translation = Some(7);
    assert_eq!(ticket.install(&mut *one.translation.lock().unwrap(), install), Ok(()));
    assert_eq!(*one.translation.lock().unwrap(), Some(7));
    let ticket = one.read_begin();
    pair(&mm);
    assert_eq!(ticket.install(&mut *one.translation.lock().unwrap(), install), Err(Retry));
    assert_eq!(*one.translation.lock().unwrap(), None);
}

#[test]
fn an_interval_that_is_dropped_while_its_owner_invalidates_is_left_to_a_worker() {
    let mm = Mm::boxed();
    let one = interval(&mm);
    let range = Range::new(0x1000..0x2000, Event::Clear).unwrap();
    let guard = RangeGuard::start(kernel(), &mm, &range);
    let (error, one) = one.unsubscribe().unwrap_err();
    assert_eq!(error, UnregisterError::InPair);
    drop(one);
    drop(guard);
    assert_eq!((mm.count(), run_work(), mm.count()), (2, 1, 1));
    assert_eq!(warnings(), []);
}

#[test]
fn an_interval_gives_its_reference_back() {
    let mm = Mm::boxed();
    let one = interval(&mm);
    assert_eq!(mm.count(), 2);
    drop(one);
    assert_eq!(mm.count(), 1);
    mm.chain.destroy(kernel());
    assert_eq!(warnings(), []);
}
