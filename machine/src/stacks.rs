//! Stacks: tasks as coroutines, and what a stack held at some moment, to go on from there once more.
//!
//! To go on from the same moment more than once is what `fork` does to a process, done to one stack. It needs two things
//! of the code that runs on the stack: what it keeps there owns nothing (else it would be dropped once for each time; see
//! [`Machine::add_task`](crate::Machine::add_task)), and whatever it refers to elsewhere goes back as well, which is for
//! the machine to see to.

use core::cell::{Cell, RefCell};
use core::fmt;
use core::mem::{MaybeUninit, size_of};
use core::ptr::NonNull;
use std::rc::Rc;

use corosensei::stack::{DefaultStack, Stack as _};
use corosensei::{Coroutine, Yielder};

type Stack = Coroutine<(), (), (), DefaultStack>;

/// Untouched pages cost nothing, and the default panic hook needs some to print a backtrace.
const STACK_BYTES: usize = 256 << 10;
/// More than `suspend` needs below the frame that calls it, also where nothing is optimised.
const BELOW: usize = 4 << 10;
/// What a coroutine is made of, beside its stack: words, all of which are initialised.
const WORDS: usize = size_of::<Stack>() / size_of::<usize>();
const _: () = assert!(size_of::<Stack>().is_multiple_of(size_of::<usize>()));

/// What the stack of a task that is suspended held at some moment.
pub(crate) struct Image {
    /// The coroutine, which knows where its stack ended; to be put back and nothing else.
    coroutine: MaybeUninit<Stack>,
    /// From where on the stack was in use.
    end: NonNull<MaybeUninit<usize>>,
    words: Box<[MaybeUninit<usize>]>,
}

impl fmt::Debug for Image {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Image({} words)", self.words.len())
    }
}

/// One task's stack.
#[derive(Default)]
struct Slot {
    /// None before it runs.
    coroutine: RefCell<Option<Stack>>,
    /// The memory of the stack, while there is no coroutine on it.
    spare: Cell<Option<DefaultStack>>,
    /// Where the stack begins: its highest address.
    base: Cell<usize>,
    /// What suspends it. On the stack itself.
    yielder: Cell<Option<NonNull<Yielder<(), ()>>>>,
    /// An address in the frame that has suspended it last.
    frame: Cell<usize>,
    /// What it holds, if it has not run since that was saved.
    image: RefCell<Option<Rc<Image>>>,
}

/// The stacks of all tasks.
#[derive(Default)]
pub(crate) struct Stacks {
    slots: RefCell<Vec<Slot>>,
    /// The task whose stack this code runs on.
    running: Cell<Option<usize>>,
}

impl Stacks {
    pub(crate) fn add(&self) {
        self.slots.borrow_mut().push(Slot::default());
    }

    pub(crate) fn running(&self) -> Option<usize> {
        self.running.get()
    }

    /// Starts a task, or continues it, until it suspends.
    #[inline(always)]
    pub(crate) fn resume(&self, task: usize, body: impl FnOnce() + 'static) {
        // No task is added while an execution runs, and a task never resumes another: the borrows meet nobody.
        let slots = self.slots.borrow();
        let slot = &slots[task];
        let mut coroutine = slot.coroutine.borrow_mut();
        let coroutine = coroutine.get_or_insert_with(|| slot.begin(body));
        slot.image.take();
        self.running.set(Some(task));
        let result = coroutine.resume(());
        self.running.set(None);
        debug_assert!(result.as_yield().is_some(), "a body never returns: its CPU goes on idling");
    }

    /// Suspends the task whose stack this is.
    #[inline(always)]
    pub(crate) fn suspend(&self) {
        let task = self.running.get().expect("only a task is suspended");
        let here = 0_u8;
        let slots = self.slots.borrow();
        slots[task].frame.set((&raw const here).addr());
        let yielder = slots[task].yielder.get().expect("a running task has a yielder");
        // What is borrowed while the stack rests would be given back once for each time that it goes on.
        drop(slots);
        // SAFETY: the yielder lives on the stack of the coroutine that runs now, which is this task's.
        unsafe { yielder.as_ref() }.suspend(());
    }

    /// What the stack of each task holds. None of them runs.
    pub(crate) fn save(&self) -> Vec<Option<Rc<Image>>> {
        self.slots.borrow().iter().map(Slot::save).collect()
    }

    /// Has each stack hold again what it held; who had not begun then has not begun.
    pub(crate) fn restore(&self, images: &[Option<Rc<Image>>]) {
        for (slot, image) in self.slots.borrow().iter().zip(images) {
            match image {
                Some(image) => slot.restore(image),
                None => slot.abandon(),
            }
        }
    }

    /// Takes all stacks back. Nothing on them owns anything, so they need not be unwound.
    pub(crate) fn abandon(&self) {
        self.slots.borrow().iter().for_each(Slot::abandon);
    }
}

impl Drop for Stacks {
    fn drop(&mut self) {
        self.abandon();
    }
}

impl Slot {
    #[inline(never)]
    fn begin(&self, body: impl FnOnce() + 'static) -> Stack {
        let stack = self.spare.take();
        let stack = stack.unwrap_or_else(|| DefaultStack::new(STACK_BYTES).expect("memory for a stack"));
        self.base.set(stack.base().get());
        let yielder_is_at: *const Cell<_> = &self.yielder;
        Coroutine::with_stack(stack, move |yielder: &Yielder<(), ()>, ()| {
            // SAFETY: no task is added once one has begun, and stacks are taken back before the slots go.
            unsafe { &*yielder_is_at }.set(Some(NonNull::from(yielder)));
            body();
        })
    }

    fn abandon(&self) {
        self.image.take();
        if let Some(mut coroutine) = self.coroutine.take() {
            // SAFETY: strategies and bodies own nothing on their stacks that must be dropped; see `add_task`.
            unsafe { coroutine.force_reset() };
            self.spare.set(Some(coroutine.into_stack()));
        }
    }

    fn save(&self) -> Option<Rc<Image>> {
        let coroutine = self.coroutine.borrow();
        let coroutine = coroutine.as_ref()?;
        let image = self.image.take().unwrap_or_else(|| Rc::new(self.look(coroutine)));
        *self.image.borrow_mut() = Some(Rc::clone(&image));
        Some(image)
    }

    /// The part of the stack that is in use.
    fn look(&self, coroutine: &Stack) -> Image {
        let coroutine: *const Stack = coroutine;
        // SAFETY: of the same size, as asserted above, and each word of a coroutine is initialised: it is addresses.
        let words: [usize; WORDS] = unsafe { coroutine.cast::<[usize; WORDS]>().read() };
        // SAFETY: a copy that is never used as a coroutine but in the place of this one.
        let coroutine: MaybeUninit<Stack> = unsafe { coroutine.cast::<MaybeUninit<Stack>>().read() };
        // Only one of them can point right below the frame that has suspended: the top of the stack is far above.
        let frame = self.frame.get();
        let end = words.into_iter().find(|word| (frame - BELOW..frame).contains(word)).expect("where its stack ends");
        let end = NonNull::new(core::ptr::with_exposed_provenance_mut(end)).expect("a stack is not at null");
        let len = (self.base.get() - end.addr().get()) / size_of::<usize>();
        // SAFETY: from the end to the base the stack is in use, and its coroutine does not run.
        let used: &[MaybeUninit<usize>] = unsafe { core::slice::from_raw_parts(end.as_ptr(), len) };
        Image { coroutine, end, words: used.into() }
    }

    fn restore(&self, image: &Rc<Image>) {
        let mut now = self.image.borrow_mut();
        if now.as_ref().is_some_and(|now| Rc::ptr_eq(now, image)) {
            return;
        }
        let mut coroutine = self.coroutine.borrow_mut();
        let coroutine: *mut Stack = coroutine.as_mut().expect("it had begun, and is abandoned only with the image");
        // SAFETY: the part of the same stack that was in use then; the coroutine does not run now.
        unsafe { core::ptr::copy_nonoverlapping(image.words.as_ptr(), image.end.as_ptr(), image.words.len()) };
        // SAFETY: the same coroutine when its stack held this. It owns the same memory then and now.
        unsafe { coroutine.cast::<MaybeUninit<Stack>>().copy_from_nonoverlapping(&raw const image.coroutine, 1) };
        *now = Some(Rc::clone(image));
    }
}
