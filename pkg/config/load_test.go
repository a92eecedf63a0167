package config_test

import (
	"errors"
	"flag"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"attentive.internal/pkg/access"
	"attentive.internal/pkg/config"
	"attentive.internal/pkg/segmentname"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

var update = flag.Bool("update", false, "write golden files")

// load returns the configuration in testdata.
func load(t *testing.T, name string) *config.Config {
	t.Helper()
	cfg, err := config.Load(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return cfg
}

// compared makes configurations comparable: secrets by what they refer to.
func compared() cmp.Options {
	return cmp.Options{
		cmpopts.IgnoreUnexported(config.Config{}),
		cmpopts.IgnoreFields(config.Config{}, "Path"),
		cmpopts.EquateEmpty(),
		cmp.AllowUnexported(config.Credential{}),
		cmp.Comparer(func(a, b config.Secret) bool { return a.String() == b.String() }),
		cmp.Comparer(func(a, b segmentname.Template) bool { return a.String() == b.String() }),
		cmp.Comparer(func(a, b *time.Location) bool { return a.String() == b.String() }),
	}
}

// segmentSettings are those of full.yaml: of its first destination, of the second
// template of that, and of its second destination.
func segmentSettings(t *testing.T) (custom, overridden, plain *config.SegmentSettings) {
	t.Helper()
	pgp := &config.PGP{Keys: []string{"testdata/keys/recipient.asc"}, Armor: true, Suffix: ".asc"}
	custom = &config.SegmentSettings{
		ClientDomain: "acme.example", RemoteFolder: "in/box", Rename: config.RenamePosix, Identifier: config.Email, PGP: pgp,
		File: config.FileFormat{
			Delimiter: ';', Escape: '\\', Quote: config.QuoteNonNumeric, LineEnd: "\r\n", Header: true, RowNumber: true,
		},
		Compression: config.TarGzip, SuccessFile: true, RejectedValues: config.Full,
		SplitRows: 1000, SplitMegabytes: 20, RejectShare: 0.25, TimeZone: newYork(t), Guards: config.Guards{Shrink: 0.9},
	}
	overridden = &config.SegmentSettings{
		ClientDomain: "acme.phones", RemoteFolder: "in/box", Rename: config.RenamePosix, Identifier: config.Phone, PGP: pgp,
		File:        config.FileFormat{Delimiter: ',', Escape: '^', Quote: config.QuoteSpecial, LineEnd: "\n"},
		Compression: config.NoCompression, RemoveOlder: true, RejectedValues: config.Masked,
		SplitRows: 2000, SplitMegabytes: 30, RejectShare: 0.3, TimeZone: time.UTC, Guards: config.Guards{Shrink: 0.4},
	}
	plain = &config.SegmentSettings{
		ClientDomain: "acme", RemoteFolder: "/uploads", Rename: config.RenamePlain, Identifier: config.Phone,
		File:        config.FileFormat{Delimiter: ',', Quote: config.QuoteSpecial, LineEnd: "\n"},
		Compression: config.NoCompression, RemoveOlder: true, RejectedValues: config.Masked,
		SplitRows: 500_000, RejectShare: 0.1, TimeZone: time.UTC, Guards: config.Guards{Shrink: 0.5},
	}
	return custom, overridden, plain
}

func TestLoadFull(t *testing.T) {
	t.Parallel()
	got := load(t, "full.yaml")
	filename, err := segmentname.Parse("{{ campaign_name }}_{{ group_name }}")
	if err != nil {
		t.Fatal(err)
	}
	custom, overridden, plain := segmentSettings(t)
	all := access.Permissions{BusinessUsers: true, RestrictedPII: true, Services: true}
	want := []config.Destination{
		{
			ID: "acme-segments", Name: "Acme Attentive Segments", Plugin: config.PluginSegments, Credential: "sftp",
			Access:  access.Permissions{BusinessUsers: true, RestrictedPII: true},
			Segment: custom,
			Templates: []config.Template{
				{ID: "default", Name: "Attentive", Access: all, Campaigns: true, DefaultRegion: "CA", Filename: filename, Segment: custom, Columns: config.Columns{Email: "mail"}},
				{ID: "phones", Name: "phones", DefaultRegion: "US", Segment: overridden, Columns: config.Columns{Phone: "mobile", Group: "treatment"}},
			},
		},
		{
			ID: "acme-phones", Name: "Acme phone Segments", Plugin: config.PluginSegments, Credential: "sftp-known",
			Access:  access.Permissions{Services: true},
			Segment: plain,
			Templates: []config.Template{{
				ID: "default", Name: "default", DefaultRegion: "GB", Segment: plain, Columns: config.Columns{Phone: "mobile"},
			}},
		},
		{
			ID: "acme-attributes", Name: "Acme attributes", Plugin: config.PluginAttributes, Credential: "api",
			Access: access.Permissions{BusinessUsers: true, Services: true},
			Attributes: &config.AttributesSettings{
				Identifier: config.Phone, SignUp: config.SignUp{Unit: "123456"}, SingleOptIn: true,
				RetryBudget:     config.RetryBudget{Duration: time.Hour, Attempts: 3},
				APIMode:         config.BulkMode,
				Bulk:            config.Bulk{Confirm: true, FillWait: 20 * time.Millisecond, CompleteWithin: 2 * time.Hour},
				OnlyChanged:     &config.OnlyChanged{Entries: 5000, MaxAge: 24 * time.Hour, Store: config.OnDisk},
				SubscribeMaxAge: 48 * time.Hour, UnknownSettle: 5 * time.Second, Nulls: config.EmptyNulls,
				Sensitive: config.Sensitive{
					Names: []string{"loyalty pin"}, Values: []config.Detector{config.IBAN}, Allow: []string{"medical staff"},
				},
				TextingHours: config.Hours{From: 8 * time.Hour, To: 21*time.Hour + 30*time.Minute, Zone: newYork(t)},
			},
			Templates: []config.Template{{
				ID: "default", Name: "default", Access: access.Permissions{RestrictedPII: true}, DefaultRegion: "US",
				Columns: config.Columns{
					Phone: "mobile", Email: "mail", ClientUserID: "id", ShopifyID: "shop", KlaviyoID: "klav", OptIn: "opted in",
				},
				Attributes: []config.Attribute{
					{Column: "tier", Name: "Loyalty tier", Type: config.String},
					{Column: "points", Name: "points", Type: config.Number},
					{Column: "vip", Name: "VIP", Type: config.Boolean},
					{Column: "city", Name: "city", Type: config.String},
				},
			}},
		},
		{
			ID: "acme-locale", Name: "acme-locale", Plugin: config.PluginAttributes, Credential: "api",
			Access: access.Permissions{Services: true},
			Attributes: &config.AttributesSettings{
				Identifier:  config.Phone,
				SignUp:      config.SignUp{Language: "en", Country: "US", SubscriptionType: "MARKETING"},
				RetryBudget: config.RetryBudget{Duration: 24 * time.Hour, Attempts: 10},
				APIMode:     config.Custom, Bulk: config.Bulk{FillWait: 100 * time.Millisecond, CompleteWithin: time.Hour},
				SubscribeMaxAge: 7 * 24 * time.Hour, UnknownSettle: time.Minute, Nulls: config.SkipNulls,
				Sensitive: config.Sensitive{Values: []config.Detector{config.CreditCard, config.IBAN, config.USSSN}},
			},
			Templates: []config.Template{{
				ID: "default", Name: "default", Columns: config.Columns{Phone: "mobile", OptIn: "sms"},
			}},
		},
	}
	if diff := cmp.Diff(want, got.Destinations, compared()); diff != "" {
		t.Errorf("destinations (-want +got):\n%s", diff)
	}
	broker := config.Broker{
		URL: "nats://a.example.com:4222,tls://b.example.com", CredentialsFile: "testdata/keys/relay.creds",
		TLS: config.BrokerTLS{
			CAFile: "testdata/keys/ca.pem", CertificateFile: "testdata/keys/relay.pem", KeyFile: "testdata/keys/relay.key",
		},
		InboxPrefix: "_INBOX_relay", Replicas: 3,
		Ceilings: config.StreamCeilings{JobsMegabytes: 2048, ProfilesMegabytes: 8192, DeadLettersMegabytes: 512, EventsMegabytes: 128},
	}
	rest := config.Config{
		Broker: broker, OpsAddress: ":9000", SourcePrefixes: []string{"file:///srv/audiences/"},
		SourceLimits: config.SourceLimits{Rows: 40_000_000, Megabytes: 4096},
		Retention: config.Retention{
			Audiences: 72 * time.Hour, Rejects: 14 * 24 * time.Hour, Ledger: 60 * 24 * time.Hour, Actions: 730 * 24 * time.Hour, Events: 7 * 24 * time.Hour,
		},
		Dedup: config.Dedup{Megabytes: 512, DiskMegabytes: 4096}, HeldMegabytes: 128,
		S3: config.S3{Endpoint: "https://s3.example.com", Region: "eu-central-1"}, Lease: 30 * time.Second,
		Credentials: got.Credentials, Destinations: got.Destinations,
	}
	if diff := cmp.Diff(rest, *got, compared()); diff != "" {
		t.Errorf("configuration (-want +got):\n%s", diff)
	}
}

func TestLoadCredentials(t *testing.T) {
	t.Parallel()
	cfg := load(t, "full.yaml")
	sftp, ok := cfg.Credential("sftp")
	if !ok || sftp.Type != config.TypeSFTP || sftp.API != nil {
		t.Fatalf("credential sftp = %+v, %v", sftp, ok)
	}
	if len(sftp.SFTP.HostKeys) != 2 || !strings.HasPrefix(sftp.SFTP.HostKeys[1], "ecdsa-sha2-nistp256 ") ||
		strings.Contains(sftp.SFTP.HostKeys[1], "second") {
		t.Errorf("host keys %q, want two without comments", sftp.SFTP.HostKeys)
	}
	sftp.SFTP.HostKeys = nil
	want := config.SFTPCredential{
		Hostname: "sftp.example.com", Port: 2222, Username: "acme",
		Passphrase:           config.FileSecret("testdata/keys/passphrase"),
		PrivateKey:           config.FileSecret("testdata/keys/private_key"),
		PrivateKeyPassphrase: config.EnvSecret("CONFIG_TEST_NEVER_SET"),
		Sessions:             4,
	}
	if diff := cmp.Diff(want, *sftp.SFTP, compared()); diff != "" {
		t.Errorf("credential sftp (-want +got):\n%s", diff)
	}
	if got, want := sftp.SFTP.Address(), "sftp.example.com:2222"; got != want {
		t.Errorf("address %q, want %q", got, want)
	}
	known, _ := cfg.Credential("sftp-known")
	if got, want := known.SFTP.KnownHosts, "testdata/keys/known_hosts"; got != want {
		t.Errorf("known hosts %q, want %q", got, want)
	}
	api, _ := cfg.Credential("api")
	wantAPI := config.APICredential{
		Key: config.FileSecret("testdata/keys/api_key"), BaseURL: "http://127.0.0.1:8080/sandbox",
		Ceilings: config.Ceilings{Attributes: 100, Subscribe: 8, Unsubscribe: 4, Bulk: 50, BulkStatus: 60}, Jitter: 20 * time.Millisecond,
	}
	if diff := cmp.Diff(wantAPI, *api.API, compared()); diff != "" {
		t.Errorf("credential api (-want +got):\n%s", diff)
	}
	if _, ok := cfg.Credential("nobody"); ok {
		t.Error("there is a credential nobody")
	}
}

// TestDefaults compares a file that leaves everything out with one that writes
// every default.
func TestDefaults(t *testing.T) {
	t.Parallel()
	minimal, defaults := load(t, "minimal.yaml"), load(t, "defaults.yaml")
	if diff := cmp.Diff(minimal, defaults, compared()); diff != "" {
		t.Errorf("defaults written out differ from those of the code (-code +written):\n%s", diff)
	}
	attributes, _ := minimal.Destination("acme-attributes")
	if !attributes.Templates[0].EveryColumn {
		t.Error("without attributes, not every column is sent")
	}
	full, _ := load(t, "full.yaml").Destination("acme-locale")
	if full.Templates[0].EveryColumn {
		t.Error("with attributes {}, every column is sent")
	}
}

func TestWarnings(t *testing.T) {
	t.Parallel()
	tests := map[string][]string{"minimal.yaml": nil}
	for _, name := range []string{"full", "warnings"} {
		tests[name+".yaml"] = goldenLines(t, "testdata/"+name+".golden", faultLines(load(t, name+".yaml").Warnings()))
	}
	for name, want := range tests {
		if diff := cmp.Diff(want, faultLines(load(t, name).Warnings()), cmpopts.EquateEmpty()); diff != "" {
			t.Errorf("warnings of %s (-want +got):\n%s", name, diff)
		}
	}
}

// TestFaults reads each file in testdata/faults and compares what is wrong with
// it with the golden list beside it.
func TestFaults(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("testdata/faults/*.yaml")
	if err != nil || len(files) < 10 {
		t.Fatalf("found %d files, %v", len(files), err)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			t.Parallel()
			cfg, err := config.Load(file)
			faults, ok := errors.AsType[config.Faults](err)
			if cfg != nil || !ok || len(faults) == 0 {
				t.Fatalf("Load = %v, %v, want faults", cfg, err)
			}
			got := faultLines(faults)
			want := goldenLines(t, strings.TrimSuffix(file, ".yaml")+".golden", got)
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("faults (-want +got):\n%s", diff)
			}
			if strings.Contains(err.Error(), "hunter2") {
				t.Errorf("a secret is shown:\n%v", err)
			}
			for _, f := range faults {
				if f.File != file || f.Line < 1 || f.Column < 1 || f.Problem == "" || f.Remedy == "" {
					t.Errorf("fault %+v lacks its place, problem or remedy", f)
				}
			}
		})
	}
}

func faultLines(faults config.Faults) []string {
	var lines []string
	for _, f := range faults {
		lines = append(lines, f.String())
	}
	return lines
}

// goldenLines returns the lines of the file, or writes them with -update.
func goldenLines(t *testing.T, path string, got []string) []string {
	t.Helper()
	if *update {
		if err := os.WriteFile(path, []byte(strings.Join(got, "\n")+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return strings.Split(strings.TrimSuffix(string(data), "\n"), "\n")
}

func TestLoadWithoutFile(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "relay.yaml")
	_, err := config.Load(path)
	if !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), "--config") {
		t.Errorf("Load = %v, want one that names the file and --config", err)
	}
}

func TestLoadHugeFile(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "relay.yaml")
	if err := os.WriteFile(path, []byte(strings.Repeat("# comment\n", 1<<19)), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := config.Load(path); err == nil || !strings.Contains(err.Error(), "larger than") {
		t.Errorf("Load = %v, want that it is too large", err)
	}
}

// TestLoadBomb reads a small file whose aliases stand for 25 million templates.
func TestLoadBomb(t *testing.T) {
	t.Parallel()
	text := "credentials: &list [" + strings.Repeat("1,", 5_000) + "]\ndestinations: [" +
		strings.Repeat("{plugin: attentive, templates: *list},", 5_000) + "]\n"
	path := filepath.Join(t.TempDir(), "relay.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := config.Load(path)
	faults, ok := errors.AsType[config.Faults](err)
	if !ok || len(faults) > 500_000 {
		t.Fatalf("%d faults", len(faults))
	}
	for _, f := range faults {
		if strings.Contains(f.Problem, "aliases counted") {
			return
		}
	}
	t.Error("no fault tells of the aliases")
}

func TestFind(t *testing.T) {
	t.Setenv("ATTENTIVE_RELAY_CONFIG", "")
	if got := config.Find(""); got != "./relay.yaml" {
		t.Errorf("Find without anything = %q", got)
	}
	t.Setenv("ATTENTIVE_RELAY_CONFIG", "/etc/relay.yaml")
	if got := config.Find(""); got != "/etc/relay.yaml" {
		t.Errorf("Find with the variable = %q", got)
	}
	if got := config.Find("other.yaml"); got != "other.yaml" {
		t.Errorf("Find with the flag = %q", got)
	}
}

// TestDocumentedExample reads the example of the design.
func TestDocumentedExample(t *testing.T) {
	t.Parallel()
	cfg := load(t, "design.yaml")
	d, ok := cfg.Destination("acme-segments")
	if !ok || d.Name != "Acme Attentive Segments" || !d.Access.BusinessUsers || !d.Access.Services {
		t.Errorf("destination = %+v, %v", d, ok)
	}
	if template, ok := d.Template("default"); !ok || template.Columns.Of(d.Segment.Identifier) != "mobile" {
		t.Errorf("template = %+v, %v", template, ok)
	}
	if _, ok := d.Template("other"); ok {
		t.Error("there is a template other")
	}
}

func newYork(t *testing.T) *time.Location {
	t.Helper()
	zone, err := time.LoadLocation("America/New_York")
	if err != nil {
		t.Fatal(err)
	}
	return zone
}
