package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v4"
)

const (
	// pathVariable names the file when no flag does.
	pathVariable = "ATTENTIVE_RELAY_CONFIG"
	// defaultPath is the file when nothing names one.
	defaultPath = "./relay.yaml"
	// maxFileBytes is room for thousands of destinations.
	maxFileBytes = 4 << 20
)

// Find returns the path of the configuration: that of the --config flag, else
// that of the environment variable ATTENTIVE_RELAY_CONFIG, else ./relay.yaml.
func Find(flag string) string {
	if flag != "" {
		return flag
	}
	if path := os.Getenv(pathVariable); path != "" {
		return path
	}
	return defaultPath
}

// Load reads the file at path. When the file can be read but has faults the
// error is a Faults with all of them.
func Load(path string) (*Config, error) {
	r := &reader{path: path}
	return r.load()
}

func (r *reader) load() (*Config, error) {
	r.depend(r.path)
	data, err := readFile(r.path)
	if err != nil {
		return nil, fmt.Errorf("read configuration: %w; name the file with --config or $%s", err, pathVariable)
	}
	cfg := r.parse(data)
	if len(r.faults) > 0 {
		r.faults.sort()
		return nil, r.faults
	}
	r.warnings.sort()
	cfg.warnings, cfg.seen = r.warnings, r.seen
	return cfg, nil
}

func readFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }() // it was only read
	data, err := io.ReadAll(io.LimitReader(f, maxFileBytes+1))
	if err == nil && len(data) > maxFileBytes {
		err = fmt.Errorf("%q is larger than %d bytes", path, maxFileBytes)
	}
	return data, err
}

// parse reads the whole file.
func (r *reader) parse(data []byte) *Config {
	loader, err := yaml.NewLoader(bytes.NewReader(data))
	if err != nil {
		r.syntax(err)
		return nil
	}
	var document, another yaml.Node
	switch err := loader.Load(&document); {
	case errors.Is(err, io.EOF) || err == nil && len(document.Content) == 0:
		r.value(&document, "").fault("is empty", "write at least credentials and destinations")
		return nil
	case err != nil:
		r.syntax(err)
		return nil
	}
	switch err := loader.Load(&another); {
	case err == nil:
		r.value(&another, "").fault("is a second document", "write everything in one, without --- between")
	case !errors.Is(err, io.EOF):
		r.syntax(err)
		return nil
	}
	return r.config(r.value(document.Content[0], ""))
}

// syntax reports what is not YAML. The parser stops at the first.
func (r *reader) syntax(err error) {
	var at yaml.Node
	problem := err.Error()
	if e, ok := errors.AsType[*yaml.LoadError](err); ok {
		at.Line, at.Column = e.Mark.Line, e.Mark.Column
		problem = e.Message
		if e.ContextMsg != "" {
			problem += " " + e.ContextMsg
		}
	}
	r.value(&at, "").fault("is not YAML: "+problem,
		`check the indentation, and put texts that begin with a brace or contain ": " in quotes`)
}

func (r *reader) config(v value) *Config {
	m := v.mapping()
	cfg := &Config{
		Path:           r.path,
		Broker:         get(m, "broker", defaultBroker, readBroker),
		OpsAddress:     get(m, "ops_address", "127.0.0.1:9464", readAddress),
		SourcePrefixes: get(m, "source_prefixes", nil, listOf(readPrefix)),
		SourceLimits:   get(m, "source_limits", mostOfSources, readSourceLimits),
		S3:             get(m, "s3", defaultS3, readS3),
		Dedup:          get(m, "dedup", defaultDedup, readDedup),
		HeldMegabytes:  get(m, "held_megabytes", 32, whole(1, 64<<10)),
		Lease:          get(m, "lease", 15*time.Second, duration(2*time.Second, time.Minute)),
		Retention:      get(m, "retention", defaultRetention, readRetention),
	}
	credentials := &ids{what: "credential"}
	const logins = "list what the destinations log in with"
	cfg.Credentials = need(m, "credentials", logins, someOf(func(v value) Credential {
		return readCredential(v, credentials)
	}, logins))
	destinations := destinationReader{credentials: cfg.Credentials, used: make(map[string]bool), ids: ids{what: "destination"}}
	const places = "list the places that jobs are sent to"
	cfg.Destinations = need(m, "destinations", places, someOf(destinations.read, places))
	m.done()
	for id, v := range credentials.first {
		if !destinations.used[id] {
			v.warn(fmt.Sprintf("credential %q is used by no destination", id), "remove it, or name it in a destination")
		}
	}
	return cfg
}

const day = 24 * time.Hour

var defaultRetention = Retention{Audiences: 7 * day, Rejects: 30 * day, Ledger: 90 * day, Actions: 365 * day, Events: 30 * day}

func readRetention(v value) Retention {
	m := v.mapping()
	r := Retention{
		Audiences: get(m, "audiences", defaultRetention.Audiences, duration(time.Hour, 365*day)),
		Rejects:   get(m, "rejects", defaultRetention.Rejects, duration(day, 365*day)),
		Ledger:    get(m, "ledger", defaultRetention.Ledger, duration(7*day, 3650*day)),
		Actions:   get(m, "actions", defaultRetention.Actions, duration(30*day, 3650*day)),
		Events:    get(m, "events", defaultRetention.Events, duration(day, 365*day)),
	}
	m.done()
	return r
}

var defaultBroker = Broker{
	URL: "nats://127.0.0.1:4222", InboxPrefix: "_INBOX", Replicas: 1, ManageStreams: true,
	Ceilings: StreamCeilings{JobsMegabytes: 1 << 10, ProfilesMegabytes: 4 << 10, DeadLettersMegabytes: 1 << 10, EventsMegabytes: 256},
}

var inboxPrefix = regexp.MustCompile(`^[A-Za-z0-9_-]{1,64}(\.[A-Za-z0-9_-]{1,64}){0,3}$`)

func readBroker(v value) Broker {
	m := v.mapping()
	b := Broker{
		URL:             get(m, "url", defaultBroker.URL, readBrokerURL),
		CredentialsFile: get(m, "credentials", "", fileReference("the NATS client reads its credentials from a file")),
		TLS:             get(m, "tls", BrokerTLS{}, readBrokerTLS),
		InboxPrefix: get(m, "inbox_prefix", defaultBroker.InboxPrefix,
			matching(inboxPrefix, "write letters, digits, _ and -, with dots between, as _INBOX_relay")),
		Replicas:      get(m, "replicas", defaultBroker.Replicas, oneOf(1, 3, 5)),
		ManageStreams: get(m, "manage_streams", defaultBroker.ManageStreams, boolean),
		Ceilings:      get(m, "ceilings", defaultBroker.Ceilings, readStreamCeilings),
	}
	m.done()
	return b
}

func readStreamCeilings(v value) StreamCeilings {
	m := v.mapping()
	megabytes, base := whole(1, 1<<20), defaultBroker.Ceilings
	c := StreamCeilings{
		JobsMegabytes:        get(m, "jobs_megabytes", base.JobsMegabytes, megabytes),
		ProfilesMegabytes:    get(m, "profiles_megabytes", base.ProfilesMegabytes, megabytes),
		DeadLettersMegabytes: get(m, "dead_letters_megabytes", base.DeadLettersMegabytes, megabytes),
		EventsMegabytes:      get(m, "events_megabytes", base.EventsMegabytes, megabytes),
	}
	m.done()
	return c
}

func readBrokerURL(v value) string {
	s := text(v)
	if s == "" {
		return ""
	}
	for one := range strings.SplitSeq(s, ",") {
		u, err := url.Parse(strings.TrimSpace(one))
		switch {
		case err != nil || u.Hostname() == "" || !hasScheme(u, "nats", "tls", "ws", "wss"):
			v.fault("is not the URL of a NATS server", "write nats://HOST:PORT or tls://HOST:PORT, several separated by commas")
			return ""
		case u.User != nil:
			v.fault("has a secret in it", "remove user and password, and name a credentials file in broker.credentials")
			return ""
		}
	}
	return s
}

func hasScheme(u *url.URL, schemes ...string) bool { return slices.Contains(schemes, u.Scheme) }

// fileReference returns a read of the reference to a secret that the NATS client
// reads itself, so that a variable cannot hold it.
func fileReference(why string) func(value) string {
	remedy := "write {file: PATH}: " + why
	return func(v value) string {
		if v.node.Kind != yaml.MappingNode {
			v.unlike("a mapping", remedy)
			return ""
		}
		m := v.mapping()
		path := need(m, "file", remedy, file)
		m.done()
		return path
	}
}

func readBrokerTLS(v value) BrokerTLS {
	m := v.mapping()
	t := BrokerTLS{
		CAFile:          get(m, "ca", "", file),
		CertificateFile: get(m, "certificate", "", file),
		KeyFile:         get(m, "private_key", "", fileReference("the NATS client reads its key from a file")),
	}
	if m.has("certificate") != m.has("private_key") {
		m.fault("has only one of certificate and private_key", "name both, or none where the broker asks for no certificate")
	}
	m.done()
	return t
}

func readAddress(v value) string {
	s := text(v)
	if s == "" {
		return ""
	}
	name, port, err := net.SplitHostPort(s)
	if _, bad := strconv.ParseUint(port, 10, 16); err != nil || bad != nil || name != "" && !isHost(name) {
		v.fault(fmt.Sprintf("is %q", s), "write HOST:PORT, as 127.0.0.1:9464; :9464 listens on all interfaces")
		return ""
	}
	return s
}

var hostname = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9._-]{0,252}[A-Za-z0-9])?$`)

func isHost(s string) bool { return hostname.MatchString(s) || net.ParseIP(s) != nil }

var idPattern = regexp.MustCompile(`^[a-z0-9-]{1,32}$`)

// ids reads ids that must differ.
type ids struct {
	what  string
	first map[string]value
}

// read reads the id of m, and its name, which is the id unless it has one.
func (s *ids) read(m *mapping) (id, name string) {
	id = need(m, "id", "give it an id of 1 to 32 of a-z, 0-9 and hyphen",
		matching(idPattern, "use 1 to 32 of a-z, 0-9 and hyphen"))
	name = get(m, "name", id, text)
	if id == "" {
		return id, name
	}
	v, _ := m.lookup("id")
	if before, again := s.first[id]; again {
		v.fault(fmt.Sprintf("%s %q is there already, in line %d", s.what, id, before.node.Line), "give it an id of its own")
		return id, name
	}
	if s.first == nil {
		s.first = make(map[string]value)
	}
	s.first[id] = v
	return id, name
}
