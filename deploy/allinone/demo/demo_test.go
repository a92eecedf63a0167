package demo_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"attentive.internal/deploy/allinone/account"
	"attentive.internal/deploy/allinone/dataset"
	"attentive.internal/deploy/allinone/demo"
	"attentive.internal/deploy/allinone/stage"
	"attentive.internal/pkg/cli/progress"
)

// small takes seconds: 200 profiles at 150 a second.
var small = dataset.Config{Rows: 3000, Profiles: 200, Seed: 3}

// run runs a demo and returns what it writes.
func run(t *testing.T, opt demo.Options) (text string, err error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	var out bytes.Buffer
	opt.Input, opt.Out, opt.Screen = small, &out, progress.New(io.Discard, progress.Style{})
	err = demo.Run(ctx, opt)
	return out.String(), err
}

func TestDemo(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "made by the demo")
	served := false
	text, err := run(t, demo.Options{Dir: dir, Serve: func(_ context.Context, s *stage.Stage) error {
		served = s.Sandbox != nil
		return nil
	}})
	if err != nil || !served {
		t.Fatalf("the demo ended with %v, serve called: %t:\n%s", err, served, text)
	}
	for _, part := range []string{
		"WinbackDressShirts", "WinbackJeans", "WinbackShoes", "VIPPreview", "lists replaced exactly once                   4           4  ok", "replaced once, by one file",
		"rejected: phone_invalid", "opted in, now active", "opted out, now unsubscribed",
		"csv.pgp, decrypted, begins with\n  +1", "All that arrived is what was expected.", "kept in " + dir,
	} {
		if !strings.Contains(text, part) {
			t.Errorf("the output does not say %q", part)
		}
	}
	if strings.Contains(text, "DIFFERS") {
		t.Errorf("something differs:\n%s", text)
	}
	for _, file := range []string{"relay.yaml", account.PassphraseFile, account.TokenFile, "relay.log", "broker", "sandbox"} {
		if _, err := os.Stat(filepath.Join(dir, file)); err != nil {
			t.Error(err)
		}
	}

	begin := time.Now()
	again, err := run(t, demo.Options{Dir: dir})
	if err != nil || !strings.Contains(again, "All that arrived is what was expected.") {
		t.Errorf("the demo, again, ended with %v:\n%s", err, again)
	}
	t.Logf("again: %v", time.Since(begin))
}

// TestDemoSeesWhatIsWrong: somebody else calls the sandbox, so the numbers cannot
// agree.
func TestDemoSeesWhatIsWrong(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	text, err := run(t, demo.Options{Dir: dir, Serve: func(ctx context.Context, s *stage.Stage) error {
		var errs []error
		for path, body := range map[string]string{
			"/v1/attributes/custom": `{"user":{"phone":"+13115552368"},"properties":{"name":"a stranger"}}`,
			"/v1/subscriptions":     `{"user":{"phone":"` + optedIn() + `"},"signUpSourceId":"` + account.SignUpUnit + `"}`,
		} {
			r, err := http.NewRequestWithContext(ctx, http.MethodPost, s.Sandbox.APIURL()+path, strings.NewReader(body))
			if err != nil {
				return err
			}
			r.Header.Set("Authorization", "Bearer "+account.Token)
			r.Header.Set("Content-Type", "application/json")
			response, err := http.DefaultClient.Do(r)
			if err != nil {
				return err
			}
			if response.StatusCode/100 != 2 {
				errs = append(errs, errors.New(path+": "+response.Status))
			}
			response.Body.Close()
		}
		return errors.Join(errs...)
	}})
	if err != nil {
		t.Fatalf("the demo ended with %v:\n%s", err, text)
	}
	text, err = run(t, demo.Options{Dir: dir})
	if !errors.Is(err, demo.ErrDiffers) {
		t.Errorf("the demo ended with %v, want %v:\n%s", err, demo.ErrDiffers, text)
	}
	_, differ, found := strings.Cut(text, "These differ:")
	for _, part := range []string{"strangers", "texted more than once for one wish"} {
		if !found || !strings.Contains(differ, part) {
			t.Errorf("%q is not among what differs:\n%s", part, differ)
		}
	}
}

// optedIn is the phone of somebody who opts in.
func optedIn() string {
	for person := range dataset.People(small) {
		if person.OptsIn {
			return person.Phone
		}
	}
	return ""
}

func TestDemoRefusesADirectoryOfAnother(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "demo.json"), []byte(`{"Rows":5000,"Profiles":900,"Seed":2}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := run(t, demo.Options{Dir: dir}); err == nil || !strings.Contains(err.Error(), "--rows 5000 --profiles 900 --seed 2") {
		t.Errorf("the demo ended with %v, want an error that names the flags of the other", err)
	}
}

func TestTemporaryDirectoryIsRemoved(t *testing.T) {
	tmp := t.TempDir()
	t.Setenv("TMPDIR", tmp)
	if text, err := run(t, demo.Options{}); err != nil {
		t.Fatalf("the demo ended with %v:\n%s", err, text)
	}
	if left, err := os.ReadDir(tmp); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}
