//! A store that fails: before it did what it was asked, and after.

use std::sync::Mutex;

use async_trait::async_trait;
use futures::FutureExt;
use futures::stream::BoxStream;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result as StoreResult,
};

use super::*;
use crate::CoreError;

#[derive(Debug, Clone, Copy, PartialEq)]
enum Fault {
    None,
    Before,
    After,
    /// The one who asked dies meanwhile.
    Never,
}

/// Puts and gets go wrong as listed, one entry each; then all is well.
#[derive(Debug)]
struct Faulty {
    inner: InMemory,
    faults: Mutex<Vec<Fault>>,
}

impl Faulty {
    fn expect(&self, faults: &[Fault]) {
        *self.faults.lock().unwrap() = faults.iter().rev().copied().collect();
    }

    fn next(&self) -> Fault {
        self.faults.lock().unwrap().pop().unwrap_or(Fault::None)
    }
}

impl std::fmt::Display for Faulty {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("faulty")
    }
}

fn unreachable() -> object_store::Error {
    object_store::Error::Generic { store: "faulty", source: "connection reset".into() }
}

#[async_trait]
impl ObjectStore for Faulty {
    async fn put_opts(&self, at: &Path, payload: PutPayload, options: PutOptions) -> StoreResult<PutResult> {
        match self.next() {
            Fault::None => self.inner.put_opts(at, payload, options).await,
            Fault::Before => Err(unreachable()),
            Fault::Never => std::future::pending().await,
            Fault::After => {
                self.inner.put_opts(at, payload, options).await?;
                Err(unreachable())
            }
        }
    }

    async fn put_multipart_opts(
        &self,
        at: &Path,
        options: PutMultipartOptions,
    ) -> StoreResult<Box<dyn MultipartUpload>> {
        self.inner.put_multipart_opts(at, options).await
    }

    async fn get_opts(&self, at: &Path, options: GetOptions) -> StoreResult<GetResult> {
        match self.next() {
            Fault::None => self.inner.get_opts(at, options).await,
            Fault::Never => std::future::pending().await,
            Fault::Before | Fault::After => Err(unreachable()),
        }
    }

    fn delete_stream(
        &self,
        paths: BoxStream<'static, StoreResult<Path>>,
    ) -> BoxStream<'static, StoreResult<Path>> {
        self.inner.delete_stream(paths)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, StoreResult<ObjectMeta>> {
        self.inner.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> StoreResult<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> StoreResult<()> {
        self.inner.copy_opts(from, to, options).await
    }
}

fn faulty(faults: &[Fault]) -> PageStore {
    let (store, objects) = faultless();
    objects.expect(faults);
    store
}

/// One with which all is well until it is told otherwise.
fn faultless() -> (PageStore, Arc<Faulty>) {
    let objects = Arc::new(Faulty { inner: InMemory::new(), faults: Mutex::default() });
    (PageStore::new(Storage::over(objects.clone(), Path::default(), "faulty:")), objects)
}

#[tokio::test]
async fn a_put_whose_answer_was_lost_is_recognised_as_our_own() {
    for faults in
        [&[Fault::After][..], &[Fault::Before, Fault::After], &[Fault::After, Fault::None, Fault::Before]]
    {
        let store = faulty(faults);
        let m = Arc::new(manifest(BranchId::random(), 1, 1));
        store.publish(&m).await.unwrap();
        assert_eq!(store.latest(&shop(), m.head.branch).await.unwrap().unwrap(), m);
    }
}

#[tokio::test]
async fn a_branch_is_made_once_whatever_answers_are_lost() {
    for lost in 0..4 {
        let mut faults = [Fault::None; 4];
        faults[lost] = Fault::After;
        let store = faulty(&faults);
        let m = Arc::new(manifest(BranchId::random(), 1, 1));
        store.create_branch(&m, None).await.unwrap();
        assert_eq!(store.branches(&shop()).await.unwrap().len(), 1);
    }
}

#[tokio::test]
async fn a_name_that_changes_hands_is_somebodys_at_every_moment() {
    let mut deaths = 0;
    for survived in 0.. {
        let (store, objects) = faultless();
        let main = Arc::new(manifest(BranchId::random(), 1, 1));
        store.create_branch(&main, None).await.unwrap();
        let rewound = Arc::new(branch_of(&main, "main"));
        let before = BranchName::new("before").unwrap();
        let handing_over = async {
            store.succeed_branch(&rewound, &main.head, main.head.branch).await?;
            store.rename_branch(&shop(), main.head.branch, &before).await
        };
        objects.expect(&[vec![Fault::None; survived], vec![Fault::Never]].concat());
        let finished = handing_over.now_or_never();
        objects.expect(&[]);
        let holder = store.find_branch(&shop(), &main.head.name).await.unwrap();
        let holder = holder.unwrap_or_else(|| panic!("nobody has the name after {survived} operations"));
        assert!([main.head.branch, rewound.head.branch].contains(&holder.branch));
        match finished {
            None => deaths += 1,
            Some(outcome) => {
                outcome.unwrap();
                assert_eq!(holder.branch, rewound.head.branch);
                break;
            }
        }
    }
    assert!(deaths > 5, "{deaths}");
}

#[tokio::test]
async fn a_store_that_stays_away_is_an_error_that_names_the_object_and_keeps_its_cause() {
    let store = faulty(&[Fault::Before; 8]);
    let m = Arc::new(manifest(BranchId::random(), 1, 1));
    let error = store.publish(&m).await.unwrap_err();
    assert!(matches!(error, CoreError::Object { .. }), "{error}");
    assert!(error.to_string().contains(".manifest"), "{error}");
    assert!(std::error::Error::source(&error).unwrap().to_string().contains("connection reset"));
    // What failed leaves nothing half-done: the same manifest goes through later.
    store.publish(&m).await.unwrap_err();
    store.publish(&m).await.unwrap();
}

#[tokio::test]
async fn layers_are_whole_or_not_there() {
    let store = faulty(&[Fault::After, Fault::Before, Fault::Before]);
    let mut m = manifest(BranchId::random(), 1, 1);
    m.body.files = vec![file(1, 3)];
    add_layer(&store, &mut m, [key(1, 0), key(1, 1)]).await;
    let view = ManifestView::new(Arc::new(m));
    assert_eq!(store.read_page(&view, key(1, 1)).await.unwrap(), Some(page(key(1, 1), 1)));
}
