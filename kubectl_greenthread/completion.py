"""`completion`: what makes a shell complete this program's words, when it is called by its own name."""

from __future__ import annotations

from kubectl_greenthread.arguments import Usage
from kubectl_greenthread.options import Session
from kubectl_greenthread.output import out

BASH = r"""# greenthread's completion for bash:  source <(greenthread completion bash)
_greenthread() {
    local words out line directive current
    # bash splits words at = and :, which belong to ours
    read -ra words <<< "${COMP_LINE:0:COMP_POINT}"
    [[ "${COMP_LINE:COMP_POINT-1:1}" == [[:space:]] ]] && words+=("")
    current="${words[${#words[@]}-1]}"
    out=$("${words[0]}" __complete "${words[@]:1}" 2>/dev/null) || return
    directive="${out##*:}"
    COMPREPLY=()
    while IFS= read -r line; do
        line="${line%%$'\t'*}"
        [[ -z "$line" || "$line" == :[0-9]* ]] && continue
        [[ "$current" == *=* && "$COMP_WORDBREAKS" == *=* ]] && line="${line#*=}"
        COMPREPLY+=("$line")
    done <<< "$out"
    [[ "$directive" == 0 ]] && compopt -o default
}
complete -F _greenthread greenthread kubectl-greenthread
"""
ZSH = r"""#compdef greenthread kubectl-greenthread
# greenthread's completion for zsh:  source <(greenthread completion zsh)
_greenthread() {
    local out line directive
    local -a lines described
    out=$("${words[1]}" __complete "${(@)words[2,CURRENT]}" 2>/dev/null) || return
    lines=("${(@f)out}")
    directive="${lines[-1]#:}"
    lines[-1]=()
    for line in "${lines[@]}"; do
        [[ -z "$line" ]] && continue
        if [[ "$line" == *$'\t'* ]]; then
            described+=("${${line%%$'\t'*}//:/\\:}:${line#*$'\t'}")
        else
            described+=("${line//:/\\:}")
        fi
    done
    if (( ${#described} == 0 )) && [[ "$directive" == 0 ]]; then
        _files
    else
        _describe greenthread described
    fi
}
compdef _greenthread greenthread kubectl-greenthread
"""
FISH = r"""# greenthread's completion for fish:  greenthread completion fish | source
function __greenthread_complete
    set -l tokens (commandline -opc) (commandline -ct)
    $tokens[1] __complete $tokens[2..-1] 2>/dev/null | string match -v -r '^:[0-9]+$'
end
for program in greenthread kubectl-greenthread
    complete -c $program -f -a '(__greenthread_complete)'
    complete -c $program -l kubeconfig -r -F
end
"""
SCRIPTS = {"bash": BASH, "zsh": ZSH, "fish": FISH}


def completion(session: Session, shell: str) -> None:
    """Print the completion of the program `greenthread` for bash, zsh or fish; source it where your shell starts.

    As `kubectl greenthread` it is completed by kubectl's own completion, as long as kubectl_complete-greenthread is on
    the PATH; nothing needs to be done for that.
    """
    if shell not in SCRIPTS:
        raise Usage(f"there is a completion for {', '.join(SCRIPTS)}, not for {shell}")
    out(SCRIPTS[shell], end="")
