package broker

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// SelectedContext names the context that is selected in the nats program.
const SelectedContext = "-"

// natsContext is what the nats program keeps of a context, as far as it is used here.
type natsContext struct {
	URL         string `json:"url"`
	User        string `json:"user"`
	Password    string `json:"password"`
	Token       string `json:"token"`
	Creds       string `json:"creds"`
	NKey        string `json:"nkey"`
	CA          string `json:"ca"`
	Certificate string `json:"cert"`
	Key         string `json:"key"`
	InboxPrefix string `json:"inbox_prefix"`
	TLSFirst    bool   `json:"tls_first"`
}

// contextFields are the members of a context that are used, or of no matter to a
// connection. With any other the nats program would connect in another way than we do.
func contextFields() []string {
	return []string{
		"url", "user", "password", "token", "creds", "nkey", "ca", "cert", "key", "inbox_prefix", "tls_first",
		"name", "description", "color_scheme",
	}
}

// ContextOptions returns the options of a context of the nats program, which is read
// from $XDG_CONFIG_HOME/nats, or ~/.config/nats. The name [SelectedContext] is that of
// $NATS_CONTEXT, else of the one that is selected there. A context with a setting that
// this package does not know is an error.
func ContextOptions(name string) (Options, error) {
	dir, err := contextDir()
	if err != nil {
		return Options{}, err
	}
	if name == SelectedContext {
		if name, err = selected(dir); err != nil {
			return Options{}, err
		}
	}
	if !regexp.MustCompile(`^[^/\\]+$`).MatchString(name) || strings.Contains(name, "..") {
		return Options{}, fmt.Errorf("nats context %q: this is no name of a context", name)
	}
	path := filepath.Join(dir, "context", name+".json")
	text, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return Options{}, fmt.Errorf("nats context %q: there is none in %s; see `nats context ls`", name, filepath.Dir(path))
	}
	if err != nil {
		return Options{}, fmt.Errorf("nats context %q: %w", name, err)
	}
	o, err := parseContext(text)
	if err != nil {
		return Options{}, fmt.Errorf("nats context %q: %s: %w", name, path, err)
	}
	return o, nil
}

func contextDir() (string, error) {
	if dir := os.Getenv("XDG_CONFIG_HOME"); dir != "" {
		return filepath.Join(dir, "nats"), nil
	}
	home, err := os.UserHomeDir()
	return filepath.Join(home, ".config", "nats"), err
}

// selected returns the name of the selected context.
func selected(dir string) (string, error) {
	if name := os.Getenv("NATS_CONTEXT"); name != "" {
		return name, nil
	}
	text, err := os.ReadFile(filepath.Join(dir, "context.txt"))
	name := strings.TrimSpace(string(text))
	if errors.Is(err, os.ErrNotExist) || err == nil && name == "" {
		return "", errors.New("no nats context is selected: `nats context select NAME`, or name one with --context")
	}
	return name, err
}

// parseContext reads a context. Its errors show no values.
func parseContext(text []byte) (Options, error) {
	var members map[string]json.RawMessage
	var c natsContext
	if json.Unmarshal(text, &members) != nil || json.Unmarshal(text, &c) != nil {
		return Options{}, errors.New("it is no context as the nats program writes it")
	}
	for name, value := range members {
		none := slices.Contains([]string{`""`, "null", "false", "[]"}, string(value))
		if !none && !slices.Contains(contextFields(), name) {
			return Options{}, fmt.Errorf("its %s is not supported; use a context without it, or broker in the configuration", name)
		}
	}
	if c.Creds != "" && c.NKey != "" {
		return Options{}, errors.New("it has both creds and nkey; use a context with one of them")
	}
	o := Options{
		URL: c.URL, User: c.User, Password: c.Password, Token: c.Token, InboxPrefix: c.InboxPrefix, TLSFirst: c.TLSFirst,
		CredentialsFile: c.Creds + c.NKey, CAFile: c.CA, CertificateFile: c.Certificate, KeyFile: c.Key,
	}
	if o.URL == "" {
		return Options{}, errors.New("it has no url")
	}
	for name, path := range map[string]*string{"creds or nkey": &o.CredentialsFile, "ca": &o.CAFile, "cert": &o.CertificateFile, "key": &o.KeyFile} {
		var err error
		if *path, err = contextPath(*path); err != nil {
			return Options{}, fmt.Errorf("its %s: %w", name, err)
		}
	}
	return o, nil
}

// contextPath returns the path of a file that a context names.
func contextPath(path string) (string, error) {
	path = strings.TrimPrefix(path, "file://")
	switch {
	case strings.Contains(path, "://") || strings.HasPrefix(path, "data:") || strings.Contains(path, "$"):
		return "", errors.New("only a path of a file is supported")
	case strings.HasPrefix(path, "~/"):
		home, err := os.UserHomeDir()
		return filepath.Join(home, path[2:]), err
	}
	return path, nil
}
