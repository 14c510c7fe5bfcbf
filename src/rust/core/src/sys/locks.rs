//! Mutex and condition variable of parking_lot's, and tokio's `Notify`. In the build for loom (`tools/sanitize loom`) some of
//! the same interface, of which loom tries every order in which threads can meet.

#[cfg(not(all(test, mirai_loom)))]
pub(crate) use parking_lot::{Condvar, Mutex};
// Windows' outbox has no model, and uses tokio's own.
#[cfg(all(unix, not(all(test, mirai_loom))))]
pub(crate) use tokio::sync::Notify;

#[cfg(all(test, mirai_loom))]
pub(crate) use self::model::{Condvar, Mutex, Notify};

#[cfg(all(test, mirai_loom))]
mod model {
    use std::ops::{Deref, DerefMut};
    use std::task::Poll;
    use std::time::Duration;

    use loom::future::AtomicWaker;

    #[derive(Default)]
    pub(crate) struct Mutex<T>(loom::sync::Mutex<T>);

    /// `None` while its thread waits.
    pub(crate) struct Guard<'a, T>(Option<loom::sync::MutexGuard<'a, T>>);

    impl<T> Mutex<T> {
        pub(crate) fn lock(&self) -> Guard<'_, T> {
            Guard(Some(self.0.lock().unwrap()))
        }
    }

    impl<T> Deref for Guard<'_, T> {
        type Target = T;

        fn deref(&self) -> &T {
            self.0.as_ref().unwrap()
        }
    }

    impl<T> DerefMut for Guard<'_, T> {
        fn deref_mut(&mut self) -> &mut T {
            self.0.as_mut().unwrap()
        }
    }

    pub(crate) struct Condvar(loom::sync::Condvar);

    /// How a wait ended.
    pub(crate) struct Ended;

    impl Ended {
        pub(crate) fn timed_out(&self) -> bool {
            false
        }
    }

    impl Condvar {
        pub(crate) fn new() -> Condvar {
            Condvar(loom::sync::Condvar::new())
        }

        pub(crate) fn notify_all(&self) {
            self.0.notify_all();
        }

        /// There is no time here: a wait that nobody ends is a deadlock, which loom reports.
        pub(crate) fn wait_while_for<T>(
            &self,
            guard: &mut Guard<'_, T>,
            mut holds: impl FnMut(&mut T) -> bool,
            _: Duration,
        ) -> Ended {
            while holds(&mut *guard) {
                let inner = guard.0.take().unwrap();
                guard.0 = Some(self.0.wait(inner).unwrap());
            }
            Ended
        }
    }

    /// Keeps one permit, for one waiter, as tokio's does.
    pub(crate) struct Notify {
        permit: Mutex<bool>,
        waiter: AtomicWaker,
    }

    impl Notify {
        pub(crate) fn new() -> Notify {
            Notify {
                permit: Mutex::default(),
                waiter: AtomicWaker::new(),
            }
        }

        pub(crate) fn notify_one(&self) {
            *self.permit.lock() = true;
            self.waiter.wake();
        }

        pub(crate) async fn notified(&self) {
            std::future::poll_fn(|cx| {
                self.waiter.register_by_ref(cx.waker());
                if std::mem::take(&mut *self.permit.lock()) {
                    Poll::Ready(())
                } else {
                    Poll::Pending
                }
            })
            .await
        }
    }
}
