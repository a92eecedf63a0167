// Package docker_test reads what only a Docker engine can run, as far as it can
// be read without one: the compose file, the Dockerfile, and the configurations
// that they mount, each with the code that will read it.
package docker_test

import (
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"attentive.internal/deploy/allinone/account"
	"attentive.internal/deploy/nats/keys"
	"attentive.internal/pkg/broker"
	"attentive.internal/pkg/config"
	"attentive.internal/pkg/sandbox"
	"attentive.internal/pkg/sandbox/sandboxtest"
	"github.com/nats-io/nats-server/v2/server"
	"go.yaml.in/yaml/v4"
)

// root is the top of the repository.
const root = "../.."

// composition is the part of a compose file that the tests look at.
type composition struct {
	Services map[string]service
	Volumes  map[string]any
}

type service struct {
	Image string
	Build struct {
		Context, Dockerfile string
		Args                map[string]string
	}
	Command     []string
	Restart     string
	User        string
	ReadOnly    bool     `yaml:"read_only"`
	CapDrop     []string `yaml:"cap_drop"`
	Environment map[string]string
	Ports       []string
	Volumes     []string
	DependsOn   map[string]struct{ Condition string } `yaml:"depends_on"`
	Healthcheck struct{ Test []string }
}

// once reports whether the service ends by itself.
func (s service) once() bool { return s.Restart == "on-failure" || s.Restart == "no" }

func compose(t *testing.T) composition {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(root, "docker-compose.yml"))
	if err != nil {
		t.Fatal(err)
	}
	var c composition
	if err := yaml.Unmarshal(text, &c); err != nil {
		t.Fatalf("docker-compose.yml: %v", err)
	}
	if len(c.Services) == 0 {
		t.Fatal("docker-compose.yml: no services")
	}
	return c
}

func TestComposeHasEveryPart(t *testing.T) {
	t.Parallel()
	c := compose(t)
	for _, name := range []string{"keys", "streams", "smoke-segments", "smoke-attributes", "nats", "sandbox", "segment-worker", "attributes-worker", "prometheus", "grafana"} {
		if _, ok := c.Services[name]; !ok {
			t.Errorf("no service %s", name)
		}
	}
}

func TestComposeServices(t *testing.T) {
	t.Parallel()
	c := compose(t)
	version := regexp.MustCompile(`:v?\d+\.\d+\.\d+(-[a-z]+)?$`)
	for name, s := range c.Services {
		switch ours := s.Build.Context != ""; {
		case !ours && !version.MatchString(s.Image):
			t.Errorf("%s: image %s names no version", name, s.Image)
		case ours && s.Build.Dockerfile != "deploy/docker/Dockerfile":
			t.Errorf("%s: built from %q: there is one Dockerfile", name, s.Build.Dockerfile)
		case ours:
			program(t, s.Build.Args["PROGRAM"])
			if !s.ReadOnly || !slices.Equal(s.CapDrop, []string{"ALL"}) || s.User != "" && name != "keys" {
				t.Errorf("%s: read-only %v, drops %v, runs as %q", name, s.ReadOnly, s.CapDrop, s.User)
			}
		}
		if test := s.Healthcheck.Test; s.once() {
			if len(test) > 0 {
				t.Errorf("%s ends, and has a health check", name)
			}
		} else if len(test) < 2 || test[0] != "CMD" || !strings.HasPrefix(test[len(test)-1], "http://127.0.0.1:") {
			t.Errorf("%s: health check %q does not ask by HTTP, without a shell", name, test)
		}
		for _, port := range s.Ports {
			if !strings.HasPrefix(port, "127.0.0.1:") {
				t.Errorf("%s: port %s is open to the network", name, port)
			}
		}
		for _, volume := range s.Volumes {
			source, _, _ := strings.Cut(volume, ":")
			if _, named := c.Volumes[source]; named {
				continue
			}
			if _, err := os.Stat(filepath.Join(root, source)); err != nil || !strings.HasPrefix(source, "./") {
				t.Errorf("%s: mount %s: neither a volume nor a file of the repository", name, volume)
			}
		}
		for other, on := range s.DependsOn {
			want := "service_healthy"
			if c.Services[other].once() {
				want = "service_completed_successfully"
			}
			if on.Condition != want {
				t.Errorf("%s waits for %s (%s), want %s", name, other, on.Condition, want)
			}
		}
	}
}

// program fails the test unless the Dockerfile builds one of the name.
func program(t *testing.T, name string) {
	t.Helper()
	text, err := os.ReadFile("Dockerfile")
	if err != nil {
		t.Fatal(err)
	}
	for word := range strings.FieldsSeq(string(text)) {
		if !strings.HasPrefix(word, "./") || filepath.Base(word) != name {
			continue
		}
		files, err := filepath.Glob(filepath.Join(root, word, "*.go"))
		if err != nil {
			t.Fatal(err)
		}
		if slices.ContainsFunc(files, func(file string) bool {
			text, err := os.ReadFile(file)
			return err == nil && strings.Contains(string(text), "\nfunc main() {")
		}) {
			return
		}
	}
	t.Errorf("PROGRAM %q is no program that the Dockerfile builds", name)
}

// TestPortsAreUsedOnce: two services on one port of the host cannot both start.
func TestPortsAreUsedOnce(t *testing.T) {
	t.Parallel()
	used := make(map[string]string)
	for name, s := range compose(t).Services {
		for _, port := range s.Ports {
			host := port[:strings.LastIndex(port, ":")]
			if other, twice := used[host]; twice {
				t.Errorf("%s and %s both publish %s", other, name, host)
			}
			used[host] = name
		}
	}
}

// TestWorkersConfiguration reads relay.yaml as the workers do, with the secrets
// that compose gives them and the files that the sandbox writes.
func TestWorkersConfiguration(t *testing.T) {
	c := compose(t)
	environment := c.Services["segment-worker"].Environment
	if environment["SANDBOX_PASSPHRASE"] != account.Passphrase || environment["SANDBOX_API_KEY"] != account.Token {
		t.Errorf("log-ins %v are not those of the sandbox", environment)
	}
	for name, value := range environment {
		t.Setenv(name, value)
	}
	dir := t.TempDir()
	running := sandboxtest.Start(t, sandbox.Config{Data: dir})
	relay, err := account.RelayFor(running.Sandbox, dir)
	if err != nil {
		t.Fatal(err)
	}
	relay = relay.At("sandbox")
	relay.SFTPPort = "2022"
	if err := os.WriteFile(filepath.Join(dir, "known_hosts"), []byte(relay.KnownHosts()), 0o600); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile("relay.yaml")
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "relay.yaml")
	if err := keys.Make(keys.Config{Dir: dir, Hosts: []string{"nats"}}); err != nil {
		t.Fatal(err)
	}
	here := strings.NewReplacer("/sandbox/", dir+"/", "/broker/", dir+"/segment-worker/")
	if err := os.WriteFile(file, []byte(here.Replace(string(text))), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg, err := config.Load(file)
	if err != nil {
		t.Fatal(err)
	}
	for _, w := range cfg.Warnings() {
		// The API key of the sandbox travels unencrypted; that warning is right.
		if !strings.Contains(w.String(), "base_url: sends the API key unencrypted") {
			t.Errorf("warning: %s", w)
		}
	}
	hosts := []string{cfg.Broker.URL}
	for _, credential := range cfg.Credentials {
		if credential.SFTP != nil {
			hosts = append(hosts, "sftp://"+credential.SFTP.Address())
		} else {
			hosts = append(hosts, credential.API.BaseURL)
		}
	}
	for _, host := range hosts {
		name := regexp.MustCompile(`^\w+://([a-z-]+):\d+$`).FindStringSubmatch(host)
		if name == nil {
			t.Errorf("%s: no service is called so", host)
		} else if _, ok := c.Services[name[1]]; !ok {
			t.Errorf("%s: no service is called so", host)
		}
	}
	if got := len(cfg.ForPlugin(config.PluginSegments)) + len(cfg.ForPlugin(config.PluginAttributes)); got < 2 {
		t.Errorf("%d destinations, want one of each plugin", got)
	}
}

// TestScrapeTargetsAreServices: Prometheus finds the workers by their names.
func TestScrapeTargetsAreServices(t *testing.T) {
	t.Parallel()
	c := compose(t)
	text, err := os.ReadFile("../prometheus/prometheus.yml")
	if err != nil {
		t.Fatal(err)
	}
	var prometheus struct {
		Jobs []struct {
			Static []struct{ Targets []string } `yaml:"static_configs"`
		} `yaml:"scrape_configs"`
	}
	if err := yaml.Unmarshal(text, &prometheus); err != nil {
		t.Fatal(err)
	}
	var scraped []string
	for _, job := range prometheus.Jobs {
		for _, static := range job.Static {
			scraped = append(scraped, static.Targets...)
		}
	}
	for _, worker := range []string{"segment-worker", "attributes-worker"} {
		if _, ok := c.Services[worker]; !ok || !slices.Contains(scraped, worker+":9464") {
			t.Errorf("%s is not scraped at its ops address; targets: %v", worker, scraped)
		}
	}
}

// TestBrokerConfiguration starts the server with nats.conf and creates on it all
// that the workers create, which reserves the ceilings of the streams.
func TestBrokerConfiguration(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := keys.Make(keys.Config{Dir: filepath.Join(dir, "keys"), Hosts: []string{"nats"}}); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"nats.conf", "accounts.conf"} {
		text, err := os.ReadFile(filepath.Join("../nats", name))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(strings.ReplaceAll(string(text), "/etc/nats", dir)), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	opts, err := server.ProcessConfigFile(filepath.Join(dir, "nats.conf"))
	if err != nil {
		t.Fatal(err)
	}
	if opts.HTTPPort != 8222 || opts.Port != 4222 {
		t.Errorf("ports %d and %d, want those of docker-compose.yml, 4222 and 8222", opts.Port, opts.HTTPPort)
	}
	opts.Host, opts.Port, opts.HTTPPort = "127.0.0.1", server.RANDOM_PORT, 0
	opts.StoreDir, opts.NoLog, opts.NoSigs = t.TempDir(), true, true
	s, err := server.NewServer(opts)
	if err != nil {
		t.Fatal(err)
	}
	s.Start()
	t.Cleanup(func() {
		s.Shutdown()
		s.WaitForShutdown()
	})
	administrator := broker.Options{InProcess: s, CredentialsFile: filepath.Join(dir, "keys", "administrator", keys.Seed)}
	conn, err := broker.Connect(t.Context(), administrator, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(conn.NC.Close)
	if err := conn.Ensure(t.Context(), broker.Settings{}); err != nil {
		t.Error(err)
	}
}

func TestDockerfile(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("Dockerfile")
	if err != nil {
		t.Fatal(err)
	}
	version := regexp.MustCompile(`^FROM (scratch|build|[a-z]+:\d+\.\d+\.\d+(-[a-z]+)?)( AS [a-z]+)?$`)
	copied := make(map[string]bool)
	user := ""
	for line := range strings.Lines(string(text)) {
		line = strings.TrimSpace(line)
		if strings.HasPrefix(line, "FROM ") && !version.MatchString(line) {
			t.Errorf("%s: names no version", line)
		}
		if after, ok := strings.CutPrefix(line, "USER "); ok {
			user = after
		}
		if strings.HasPrefix(line, "COPY ") && !strings.Contains(line, "--from") {
			for source := range strings.FieldsSeq(line) {
				copied[source] = true
			}
		}
	}
	if user == "" || strings.HasPrefix(user, "0") || strings.HasPrefix(user, "root") {
		t.Errorf("runs as %q", user)
	}
	modules, err := filepath.Glob(filepath.Join(root, "*/go.mod"))
	if err != nil || len(modules) == 0 {
		t.Fatalf("no modules: %v", err)
	}
	for _, module := range modules {
		name := filepath.Base(filepath.Dir(module)) + "/go.mod"
		if !copied[name] {
			t.Errorf("%s is not copied before go mod download", name)
		}
	}
}
