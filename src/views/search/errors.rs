//! Errors of an index as errors of its view.

use std::io::ErrorKind;
use std::path::Path;

use tantivy::TantivyError;
use tantivy::directory::error::OpenReadError;

use crate::views::{ViewError, derived_damage};

/// The stream of an index: the folder of all its indexes is named after it.
pub fn stream_name(folder: &Path) -> String {
    let is_part = |name: &str| name.len() == 6 && name.bytes().all(|b| b.is_ascii_digit());
    let name = |path: &Path| {
        path.file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned()
    };
    if is_part(&name(folder)) {
        name(folder.parent().unwrap_or(folder))
    } else {
        name(folder)
    }
}

/// The error for a file of an index that is not as it was written.
pub fn damaged_index(folder: &Path, file: &Path, what: &str) -> ViewError {
    derived_damage(file, what, "search", &stream_name(folder))
}

/// The error of a view for one of its index: disk errors can be retried, the rest is damage.
pub fn index_error(folder: &Path) -> impl Fn(TantivyError) -> ViewError {
    let path = folder.to_owned();
    move |error| {
        let reason = error.to_string();
        match error {
            // Undecodable bytes are damage: a retry would not help.
            TantivyError::IoError(ref error)
            | TantivyError::OpenReadError(OpenReadError::IoError {
                io_error: ref error,
                ..
            }) if matches!(
                error.kind(),
                ErrorKind::InvalidData | ErrorKind::UnexpectedEof
            ) =>
            {
                damaged_index(&path, &path, &reason)
            }
            TantivyError::IoError(_)
            | TantivyError::LockFailure(..)
            | TantivyError::OpenDirectoryError(_)
            | TantivyError::OpenReadError(OpenReadError::IoError { .. })
            | TantivyError::OpenWriteError(_)
            | TantivyError::SystemError(_)
            | TantivyError::ErrorInThread(_) => {
                ViewError::failed(path.display().to_string())(error)
            }
            _ => damaged_index(&path, &path, &reason),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[test]
    fn only_errors_of_the_disk_can_be_retried() {
        let error = index_error(Path::new("search/clicks/000001"));
        for (cause, is_final) in [
            (io::Error::from(ErrorKind::StorageFull).into(), false),
            (io::Error::from(ErrorKind::InvalidData).into(), true),
            (io::Error::from(ErrorKind::UnexpectedEof).into(), true),
            (TantivyError::SystemError("no thread".into()), false),
            (TantivyError::InternalError("bug".into()), true),
        ] {
            assert_eq!(error(cause).is_final(), is_final);
        }
    }

    #[test]
    fn a_stream_is_found_by_the_folder_of_any_of_its_indexes() {
        for folder in ["search/clicks", "search/clicks/000001"] {
            assert_eq!(stream_name(Path::new(folder)), "clicks");
        }
    }
}
