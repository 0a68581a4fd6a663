//! Static credentials of a profile in `~/.aws`, as the AWS tools keep them.
//!
//! The format is that of the AWS SDKs' shared `config` and `credentials` files: sections in brackets (`[name]`, in the
//! config file `[profile name]` except for the default), `key = value` lines, comments with `#` or `;`, nested values
//! indented. Profiles that lead elsewhere (a role to assume, SSO, a command) need a client of their own; whoever asks
//! for one by name is told what works instead.

use std::collections::HashMap;
use std::path::PathBuf;

/// A file of credentials is some lines long; a larger one is something else.
const LARGEST_FILE: u64 = 1 << 20;

/// Keys that say where to get credentials, rather than what they are.
const INDIRECT: [&str; 5] =
    ["role_arn", "sso_session", "sso_start_url", "credential_process", "web_identity_token_file"];

/// What a profile gives.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct AwsProfile {
    pub(crate) access_key_id: String,
    pub(crate) secret_access_key: String,
    pub(crate) session_token: Option<String>,
    pub(crate) region: Option<String>,
    pub(crate) endpoint_url: Option<String>,
}

/// Why a profile that was asked for by name gives nothing.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProfileError {
    /// There is no such profile.
    #[error("AWS_PROFILE names `{profile}`, which is in neither {} nor {}", credentials.display(), config.display())]
    Missing {
        /// The profile's name.
        profile: String,
        /// The credentials file.
        credentials: PathBuf,
        /// The config file.
        config: PathBuf,
    },
    /// It has no keys of its own.
    #[error(
        "the AWS profile `{profile}` has no access key of its own ({reason}); export its credentials as AWS_ACCESS_KEY_ID, \
         AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN (`aws configure export-credentials --format env` prints them)"
    )]
    NoKeys {
        /// The profile's name.
        profile: String,
        /// What it has instead.
        reason: String,
    },
    /// A file is there and cannot be read.
    #[error("cannot read {}", file.display())]
    File {
        /// The file.
        file: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
}

/// The profile that the AWS tools would use: the one of `AWS_PROFILE`, which has to be usable, or `default` if it is.
pub(crate) fn find(variable: &dyn Fn(&str) -> Option<String>) -> Result<Option<AwsProfile>, ProfileError> {
    let asked_for = variable("AWS_PROFILE").filter(|name| !name.is_empty());
    let name = asked_for.clone().unwrap_or_else(|| "default".to_owned());
    let place = |own: &str, usual: &str| {
        let home = || variable("HOME").map(|home| PathBuf::from(home).join(".aws").join(usual));
        variable(own).map(PathBuf::from).or_else(home)
    };
    let credentials = place("AWS_SHARED_CREDENTIALS_FILE", "credentials").unwrap_or_default();
    let config = place("AWS_CONFIG_FILE", "config").unwrap_or_default();
    let mut values = section(&read(&config)?, &[&format!("profile {name}"), &name]);
    // The credentials file wins, as it does for the AWS tools.
    values.extend(section(&read(&credentials)?, &[&name]));

    let indirect = INDIRECT.into_iter().find(|key| values.contains_key(*key));
    let (id, secret) = (values.remove("aws_access_key_id"), values.remove("aws_secret_access_key"));
    match (id, secret, asked_for) {
        (Some(access_key_id), Some(secret_access_key), _) if !values.contains_key("role_arn") => {
            Ok(Some(AwsProfile {
                access_key_id,
                secret_access_key,
                session_token: values.remove("aws_session_token"),
                region: values.remove("region"),
                endpoint_url: values.remove("endpoint_url"),
            }))
        }
        (.., None) => Ok(None),
        (.., Some(profile)) if values.is_empty() => {
            Err(ProfileError::Missing { profile, credentials, config })
        }
        (.., Some(profile)) => {
            let reason = indirect.map_or_else(|| "no keys".to_owned(), |key| format!("`{key}`"));
            Err(ProfileError::NoKeys { profile, reason })
        }
    }
}

fn read(file: &std::path::Path) -> Result<String, ProfileError> {
    let failed = |source| ProfileError::File { file: file.to_owned(), source };
    match file.metadata() {
        Ok(metadata) if metadata.len() > LARGEST_FILE => {
            Err(failed(std::io::Error::other("it is larger than a file of profiles can be")))
        }
        Ok(_) => std::fs::read_to_string(file).map_err(failed),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(String::new()),
        Err(error) => Err(failed(error)),
    }
}

/// The keys of the sections of these names.
fn section(text: &str, names: &[&str]) -> HashMap<String, String> {
    let mut values = HashMap::new();
    let mut inside = false;
    for line in text.lines() {
        let trimmed = line.trim();
        if let Some(header) = trimmed.strip_prefix('[') {
            let header = header.split(']').next().unwrap_or_default();
            let words: Vec<&str> = header.split_whitespace().collect();
            inside = names.contains(&words.join(" ").as_str());
            continue;
        }
        let nested = line.starts_with([' ', '\t']);
        if !inside || nested || trimmed.starts_with(['#', ';']) {
            continue;
        }
        if let Some((key, value)) = trimmed.split_once('=') {
            // A comment needs a blank before it: secrets contain `#`.
            let value = value.split(" #").next().unwrap_or_default();
            values.insert(key.trim().to_ascii_lowercase(), value.trim().to_owned());
        }
    }
    values
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Home(tempfile::TempDir);

    impl Home {
        fn with(credentials: &str, config: &str) -> Home {
            let home = tempfile::tempdir().unwrap();
            std::fs::create_dir(home.path().join(".aws")).unwrap();
            std::fs::write(home.path().join(".aws/credentials"), credentials).unwrap();
            std::fs::write(home.path().join(".aws/config"), config).unwrap();
            Home(home)
        }

        fn find(&self, profile: Option<&str>) -> Result<Option<AwsProfile>, ProfileError> {
            find(&|name| match name {
                "HOME" => Some(self.0.path().to_str().unwrap().to_owned()),
                "AWS_PROFILE" => profile.map(str::to_owned),
                _ => None,
            })
        }
    }

    const CREDENTIALS: &str = "\
# made by `aws configure`
[default]
aws_access_key_id = AKIADEFAULT
aws_secret_access_key=se/cr#et+==
[lake]
aws_access_key_id = AKIALAKE   # of the team
aws_secret_access_key = other
aws_session_token = token
";
    const CONFIG: &str = "\
[default]
region = eu-central-1
s3 =
    addressing_style = path
[profile lake]
region = us-east-2
endpoint_url = https://store.example
[profile sso]
sso_session = corp
[profile assumed]
role_arn = arn:aws:iam::1:role/x
aws_access_key_id = AKIASOURCE
aws_secret_access_key = source
";

    #[test]
    fn the_default_profile_is_used_without_being_asked_for() {
        let found = Home::with(CREDENTIALS, CONFIG).find(None).unwrap().unwrap();
        assert_eq!((&*found.access_key_id, &*found.secret_access_key), ("AKIADEFAULT", "se/cr#et+=="));
        assert_eq!((found.region.as_deref(), found.session_token), (Some("eu-central-1"), None));
    }

    #[test]
    fn a_named_profile_takes_its_parts_from_both_files() {
        let found = Home::with(CREDENTIALS, CONFIG).find(Some("lake")).unwrap().unwrap();
        assert_eq!((&*found.access_key_id, found.session_token.as_deref()), ("AKIALAKE", Some("token")));
        assert_eq!(
            (found.region.as_deref(), found.endpoint_url.as_deref()),
            (Some("us-east-2"), Some("https://store.example"))
        );
    }

    #[test]
    fn a_profile_that_leads_elsewhere_is_refused_with_the_way_out() {
        let home = Home::with(CREDENTIALS, CONFIG);
        for profile in ["sso", "assumed"] {
            let error = home.find(Some(profile)).err().unwrap().to_string();
            assert!(error.contains(profile) && error.contains("export-credentials"), "{error}");
        }
        assert!(matches!(home.find(Some("nobody")), Err(ProfileError::Missing { .. })));
    }

    #[test]
    fn without_any_file_nothing_is_found() {
        let home = tempfile::tempdir().unwrap();
        let variable = |name: &str| (name == "HOME").then(|| home.path().to_str().unwrap().to_owned());
        assert!(find(&variable).unwrap().is_none());
    }
}
