/*
 * Shows the maps of this run in QuPath 0.4 or later.
 *
 * 1. Open the project, or one slide, in QuPath.
 * 2. Automate > Script editor, then File > Open...: open this file in its folder, beside the .geojson files.
 * 3. Run > Run for the open slide, or Run > Run for project for all slides.
 * 4. Measure > Show measurement maps: select a map; the sliders set its colours. View > Fill detections fills the tiles.
 *
 * Objects that this script loaded earlier are replaced. Your own objects are not changed.
 */
import groovy.json.JsonSlurper
import qupath.lib.scripting.ScriptAttributes

// The folder of the .geojson files; null: the folder of this script.
String folder = null

if (folder == null) {
    def script = null
    try {
        script = getProperty(ScriptAttributes.FILE_PATH)
    } catch (MissingPropertyException ignored) {
        // an unsaved copy has no file
    }
    if (script == null) {
        throw new IllegalStateException("Open the script from its folder, or set 'folder' to that folder's path.")
    }
    folder = new File(script.toString()).getParent()
}

// The slide is identified by its file name in the manifest, else by the image's name without extension.
def slides = new JsonSlurper().parse(new File(folder, 'slides.json'), 'UTF-8')
def server = getCurrentServer()
def names = server.getURIs().collect { new File(it.getPath() ?: '').getName() }
names << server.getMetadata().getName()
names << getProjectEntry()?.getImageName()
names = names.findAll { it }
def ids = names.collect { slides[it] } + names + names.collect { it.replaceFirst(/(?i)(\.ome)?\.[^.]+$/, '') }
def file = ids.findAll { it }.collect { new File(folder, it + '.geojson') }.find { it.isFile() }

if (file == null) {
    println "No tiles for ${names.unique().join(' / ')} in ${folder}"
    return
}

// Our objects have ids of UUID version 5 (QuPath's own have version 4), and the name of the outline starts with "Tissue".
def ours = { it.isLocked() && it.getID().version() == 5 }
def outlines = getAnnotationObjects().findAll { ours(it) && it.getName()?.startsWith('Tissue') }
def earlier = getDetectionObjects().findAll { ours(it) && it.isTile() } + outlines
removeObjects(earlier, true)
importObjectsFromFile(file.getPath())
fireHierarchyUpdate()
println "Loaded ${file.getName()}: now Measure > Show measurement maps"
